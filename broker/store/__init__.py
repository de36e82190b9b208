"""The store of one replica: the CommitLog and everything that is a function of it.

It knows no replication and no network. `message_store.open_message_store` is the front door.
"""
