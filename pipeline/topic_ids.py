"""Ids of topics: one that was deleted and made anew has another id under its old name."""

from __future__ import annotations

import asyncio
import threading

from confluent_kafka import TopicCollection
from confluent_kafka.admin import AdminClient

from pipeline.clients import Clients

_ASK_TIMEOUT_S = 5.0


class TopicIds:
    """Asks the broker; may be used from any thread."""

    def __init__(self, clients: Clients) -> None:
        self._clients, self._lock = clients, threading.Lock()
        self._admin: AdminClient | None = None  # kept, because a client that is let go of takes its answers along

    async def id_of(self, topic: str) -> str:
        """The id a topic was given when it was made."""
        return await asyncio.to_thread(self.ask, topic)

    def ask(self, topic: str) -> str:
        """The same, blocking.

        Raises
        ------
        KafkaException
            There is no such topic, or no answer.
        """
        with self._lock:
            if self._admin is None:
                self._admin = self._clients.unchecked_admin()
        found = self._admin.describe_topics(TopicCollection([topic]), request_timeout=_ASK_TIMEOUT_S)
        return str(found[topic].result(_ASK_TIMEOUT_S + 1.0).topic_id)
