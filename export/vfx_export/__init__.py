"""Export: from a torch module and its weights to an engine file with its spec.

from vfx_export import export_model, export_module, find

export_model(find("i3d"), Path("i3d.onnx"), checkpoint=Path("i3d_rgb.pt"), precision="bf16")
export_module(my_module, my_spec, Path("mine.onnx"))      # any torch module, compared in the same way
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vfx_export.catalogue import CATALOGUE, find
    from vfx_export.exporting import export_model, export_module
    from vfx_export.model import Model

__all__ = ["CATALOGUE", "Model", "export_model", "export_module", "find"]


def __getattr__(name: str) -> object:
    # Imported on first use: torch takes seconds to import, and `vfx-export --help` imports this package.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from vfx_export import catalogue, exporting, model

    home = next(module for module in (model, catalogue, exporting) if name in vars(module))
    value: object = getattr(home, name)
    globals()[name] = value
    return value
