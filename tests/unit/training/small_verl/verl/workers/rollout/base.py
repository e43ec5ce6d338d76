"""The classes of rollouts."""


def get_rollout_class(rollout_name, mode="async"):
    return f"{rollout_name} {mode}"
