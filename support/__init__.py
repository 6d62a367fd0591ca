"""What does a training stand on? For readers who wonder how: the data set, the optimizer, safe files, the machine,
saved runs, pictures. Nothing here knows a recipe, a variant or a folder of this project; it is handed what it needs."""
