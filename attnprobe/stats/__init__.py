"""How sure a number is: bootstrap over images, runs and groups, paired tests, intervals, images needed."""
