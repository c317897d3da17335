"""The user's audit policy: `document` reads it, `engine` applies it, `explain` shows its effect."""
