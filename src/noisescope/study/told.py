"""What a study keeps beside its records: the profile, and what its channels look like."""

from dataclasses import dataclass
from pathlib import Path

from noisescope.profile import Profile
from noisescope.study.channels import ModuleChannels
from noisescope.study.kept_channels import read_channels
from noisescope.study.kept_profile import read_profile


@dataclass(frozen=True)
class Told:
    """What the clean model told, without any noise.

    Attributes:
        profile: Of backward passes; None where nothing was predicted.
        modules: The channels of modules; none where nobody looked.
    """

    profile: Profile | None = None
    modules: tuple[ModuleChannels, ...] = ()


def read_told(directory: Path) -> Told:
    """Returns what a study's directory keeps.

    Raises:
        InputError: A file was changed.
    """
    return Told(read_profile(directory), read_channels(directory) or ())
