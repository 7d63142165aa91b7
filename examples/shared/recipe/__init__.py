"""From a network of pictures to a table of what samplers make of it: samplers by name, a judge, rows, pieces."""
