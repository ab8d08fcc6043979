"""The listening process: it queues and answers, and imports no Seamless package."""
