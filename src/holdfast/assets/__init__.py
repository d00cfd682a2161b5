"""Files that ship with the package: the lab model, and the recipes in a wheel."""
