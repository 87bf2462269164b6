"""The built-in kinds of device, as `meshwright doctor --kinds` lists them."""

from __future__ import annotations

from meshwright.cli.output import Output
from meshwright.cluster.profile_file import builtin_kinds, builtin_profile
from meshwright.cluster.types import Profile

_RIGHT = ("memory", "peak", "streams", "in host", "across", "a host")


def show_kinds(out: Output) -> None:
    """A row for each kind; as JSON the whole profiles, with the source of every figure."""
    from meshwright.cli.show import table

    profiles = [builtin_profile(kind) for kind in builtin_kinds()]
    made = table("kind", *_RIGHT, "a rack", right=(*_RIGHT, "a rack"))
    for profile in profiles:
        made.add_row(*kind_row(profile))
    out.print(made)
    out.print(
        "\nGiB; TFLOP/s of 16-bit products; GB/s of memory; GB/s of links for each device\n"
        "and direction; devices of a host, and of a rack whose links outrun its network.\n"
        "Peaks of data sheets. --json has all figures, each with its source."
    )
    out.emit({"kinds": [profile.model_dump(mode="json") for profile in profiles]})


def kind_row(profile: Profile) -> tuple[str, ...]:
    """Cells of one kind, in the order of the listing's columns."""
    speeds = {link.name: link.bytes_per_s / link.shared_by for link in profile.links}
    rack = next((link.devices for link in profile.links if link.name == "rack"), None)
    return (
        profile.name,
        f"{profile.memory_bytes / 2**30:.0f}",
        f"{profile.peak_flops / 1e12:,.0f}",
        f"{profile.memory_bytes_per_s / 1e9:,.0f}",
        f"{speeds['host'] / 1e9:.3g}",
        f"{speeds['across'] / 1e9:.3g}",
        str(profile.host_devices),
        f"{rack}" if rack else "",
    )
