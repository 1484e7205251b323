"""From the files of a project to its site: gather, render, build, archive, serve."""
