"""Write the reference of all public names, from their docstrings, to build/docs: `make docs`."""

import warnings
from pathlib import Path

import pdoc

import kreg

ROOT = Path(__file__).parent.parent
OUTPUT = ROOT / "build" / "docs"
#: What most people come for, at the head of its page; all else follows in its own order.
FIRST = {
    kreg: "register Registration RegistrationModel",
    kreg.data: "ArrayPairs RandomPairs FolderPairs RandomFolderPairs load_mnist mnist_pairs",
    kreg.io: "read register Alignment write save_transform load_transform",
    kreg.layers: "SpatialTransformer IntegrateVelocity ComposeDisplacements GaussianPyramid",
    kreg.losses: "NCC LocalNCC MutualInformation MINE Diffusion BendingEnergy",
    kreg.models: "encoder_decoder two_pass voxelmorph dirnet affine_net affine_dense "
    "global_to_local ddim",
    kreg.ops: "warp sample compose integrate invert resize jacobian_determinant",
    kreg.pairwise: "register Registration CoarseToFine EdgeStrength field_of_view",
}


def main():
    """Write it anew; what pdoc warns of ends it."""
    # Some names are imported when they are asked for, which pdoc does not do.
    vars(kreg.io).update({name: getattr(kreg.io, name) for name in kreg.io.__all__})
    for module, names in FIRST.items():
        # pdoc follows `__all__`, and fails at a name that there is not.
        module.__all__ = list(dict.fromkeys([*names.split(), *module.__all__]))
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
