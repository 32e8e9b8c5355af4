"""Bounds of a worker: whatever a controller sends, queues and memory stay finite."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class WorkerLimits:
    """Every bound of the shell, by name and unit.

    Attributes:
        max_rows: Most commands of one forward.
        max_batch_tokens: Most tokens and nodes of one forward, unless one command has more.
        gather_share: Longest wait of a forward for sessions just answered, as a share of the fixed
            time of a forward; 0 = none.
        max_sessions: Most sessions open, over all controllers.
        max_controllers: Most controllers attached or in their grace time.
        max_prefill_tokens: Most tokens of one Prefill, and most pairs of one Extend.
        max_frame_commands: Most commands of one frame.
        max_round_in_flight: Most round commands of one session in flight; an Extend and the
            ExpandTree right behind it count as one.
        max_bulk_in_flight: Most prompt chunks, and most feature reads, of one session in flight.
        max_waiters: Most repetitions that may wait for one command.
        max_queued_commands: Most commands in flight, over all sessions.
        max_part_bytes: Most feature bytes of one part of a long answer.
        max_frame_bytes: Bytes of results after which a frame is closed.
        max_outbox_bytes: Bytes of unsent results after which a stream is not read any further.
        reattach_grace_s: Seconds that sessions outlive their controller's last stream.
        attach_timeout_s: Seconds until the first message of a stream must have come.
        flush_timeout_s: Seconds a peer that sends no more may take to read what is ready.
        retry_after_ms: Advice to a controller refused for want of room.
    """

    max_rows: int = 64
    max_batch_tokens: int = 8192
    gather_share: float = 0.5
    max_sessions: int = 256
    max_controllers: int = 64
    max_prefill_tokens: int = 4096
    max_frame_commands: int = 256
    max_round_in_flight: int = 1
    max_bulk_in_flight: int = 2
    max_waiters: int = 4
    max_queued_commands: int = 4096
    max_part_bytes: int = 256 * 1024
    max_frame_bytes: int = 1024 * 1024
    max_outbox_bytes: int = 64 * 1024 * 1024
    reattach_grace_s: float = 5.0
    attach_timeout_s: float = 5.0
    flush_timeout_s: float = 2.0
    retry_after_ms: int = 100
