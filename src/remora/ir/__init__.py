"""The graph: nodes, templates, their text form and the rules of each stage."""
