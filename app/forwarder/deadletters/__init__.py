"""Dead letters: what no sink accepts, in the storage account if there is one, else on disk.

No other store takes over while this one fails. Checkpoints are in the same place, so meanwhile none
passes a message with a dead letter, and the message is read again after a restart.
"""
