"""What does a training stand on? For readers who wonder how: the data set, images, layers, the optimizer, safe files,
the machine, scripts, saved runs, pictures. Nothing here imports from above or looks for a folder: it is handed them."""
