"""Dead letters: what no sink accepts, kept in the storage account if there is one, else on disk.

While this store fails, no other one takes over. Checkpoints are stored in the same place, so until
it recovers none passes a message with a dead letter, and a restart reads that message again.
"""
