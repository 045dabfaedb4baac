"""What is known of each op: schema traits, permission, shape rules, composites kept whole."""
