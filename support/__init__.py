"""Supporting code that decides no weight: data set, files, command lines, saved runs, machine, figures."""
