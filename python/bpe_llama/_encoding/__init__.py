"""Encode for a model: batches of ids, chats, files of ids."""
