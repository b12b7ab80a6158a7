"""Write the reference of all public names, from their docstrings, to build/docs: `make docs`."""

import warnings
from pathlib import Path

import pdoc

import kreg

ROOT = Path(__file__).parent.parent
OUTPUT = ROOT / "build" / "docs"


def main():
    """Write it anew; what pdoc warns of ends it."""
    # Some names are imported when they are asked for, which pdoc does not do.
    vars(kreg.io).update({name: getattr(kreg.io, name) for name in kreg.io.__all__})
    pdoc.docstrings.GOOGLE_LIST_SECTIONS.append("Call arguments")
    pdoc.render.configure(docformat="google", footer_text=f"kreg {kreg.__version__}")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # Public names are those of the packages, not of the modules that they are written in: but
        # for the one that states the conventions.
        pdoc.pdoc("kreg", r"!kreg\.\w+\.", "kreg.ops.coordinates", output_directory=OUTPUT)
    print(f"Written to {OUTPUT.relative_to(ROOT)}: open index.html")


if __name__ == "__main__":
    main()
