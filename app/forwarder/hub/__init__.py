"""The event hub: how to connect to it, receive from it, and watch it."""
