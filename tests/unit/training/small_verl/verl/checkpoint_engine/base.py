"""What builds workers asks for the class of a rollout here."""

from verl.workers.rollout.base import get_rollout_class

__all__ = ["get_rollout_class"]
