"""Dead letters: what no sink accepts, kept in the storage account if there is one, else on disk.

While this store fails, no other one takes over: checkpoints are in the same place, and wait too.
"""
