"""Dead letters: what no sink accepts, kept where an operator finds it."""
