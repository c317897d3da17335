"""The audit policy: `document` reads it, `rules` decide on events, `redact` edits them."""
