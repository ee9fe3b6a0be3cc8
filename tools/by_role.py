"""Prints README's list of mechanisms: python -m tools.by_role"""

from flaxattn import ATTENTION
from flaxattn.attention.mechanism import layer_of

ROLES = {
    "recalibrate": "rescale their input",
    "context": "bring in other positions",
    "convolution": "replace a convolution",
    "head": "change the number of channels",
}


def by_role() -> str:
    """The names, sorted by what the layers do, as Markdown."""
    lines = []
    for role, meaning in ROLES.items():
        names = [
            f"`{name}`" for name in sorted(ATTENTION) if layer_of(ATTENTION[name]).role == role
        ]
        lines.append(f"* **{role}** ({meaning}): {', '.join(names)}")
    return "\n".join(lines)


if __name__ == "__main__":
    print(by_role())
