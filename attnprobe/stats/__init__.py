"""Statistics: bootstrap over images, runs and groups, paired tests, intervals, images needed."""
