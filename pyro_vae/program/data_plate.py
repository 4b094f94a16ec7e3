"""Which of the batch dimensions is that of the data."""

from __future__ import annotations

from typing import Any

from pyro_vae.program.sites import kind_of, plates_of

__all__ = ["dim_of_data"]


UNSIZED = -1
"""The size of a plate that was given none."""


def dim_of_data(sites: list[dict[str, Any]], num_rows: int, plate: str | int | None) -> int:
    """Find the batch dimension of data that every site has: a plate over them, or a plain one."""
    names = {frame.name for site in sites for frame in plates_of(site)}
    if isinstance(plate, str) and plate not in names:
        _refuse_without_plate(sites, num_rows, plate)
    dims = [_dims_of_data(site, sites, num_rows, plate) for site in sites]
    common = set.intersection(*dims)
    if len(common) > 1:
        held = sorted({frame.name for site in sites for frame in plates_of(site) if frame.dim in common})
        raise ValueError(
            f"plate: expected one plate over the data; got {len(common)} that hold every site, "
            f"{', '.join(map(repr, held))}; say which with plate=..."
        )
    if not common:
        _refuse_without_plate(sites, num_rows, plate)
    return common.pop()


def _dims_of_data(
    site: dict[str, Any], sites: list[dict[str, Any]], num_rows: int, plate: str | int | None
) -> set[int]:
    """Find the dimensions of a site that may be those of the data."""
    if isinstance(plate, int):
        return {plate}
    frames = plates_of(site)
    named = [frame for frame in frames if frame.name == plate] or frames
    found = {frame.dim for frame in named if _size_of(frame, sites) == num_rows}
    if found:
        return found
    shape = site["fn"].batch_shape
    plain = {dim for dim in range(-len(shape), 0) if shape[dim] == num_rows}
    return plain - {frame.dim for frame in frames} - set(site["infer"].get("_dim_to_id", ()))


def _refuse_without_plate(sites: list[dict[str, Any]], num_rows: int, plate: str | int | None) -> None:
    frames = {frame.name: frame for site in sites for frame in plates_of(site)}
    sizes = {name: _size_of(frame, sites) for name, frame in frames.items()}
    of_data = [name for name, size in sizes.items() if plate in (None, name) and size == num_rows]
    if of_data:
        dim = frames[of_data[0]].dim
        outside = next(site for site in sites if dim not in _dims_of_data(site, sites, num_rows, plate))
        _refuse_outsider(outside, sites, of_data[0])
    found = ", ".join(f"{name!r} of size {size}" for name, size in sizes.items()) or "no plate"
    wanted = "a plate" if plate is None else f"a plate {plate!r}"
    raise ValueError(
        f"model, guide: expected {wanted} over the {num_rows} data; got {found}; put all sites into "
        'pyro.plate("data", len(x)), without subsampling.'
    )


def _size_of(frame: Any, sites: list[dict[str, Any]]) -> int:
    """Return the size of a plate; for one without a size, as `pyro.plate("data")`, that of what lies in it."""
    if frame.size != UNSIZED:
        return frame.size
    inside = [site["fn"].batch_shape for site in sites if frame.name in [each.name for each in plates_of(site)]]
    return max((shape[frame.dim] for shape in inside if len(shape) >= -frame.dim), default=1)


def _refuse_outsider(outside: dict[str, Any], sites: list[dict[str, Any]], plate: str) -> None:
    others = ", ".join(repr(frame.name) for frame in plates_of(outside))
    if others and any(
        site["name"] == outside["name"] and plate in [frame.name for frame in plates_of(site)] for site in sites
    ):
        raise ValueError(
            f"model, guide: expected site {outside['name']!r} in plates of the same names; got {plate!r} in one of "
            f"them, and {others} in the other; give them one name."
        )
    if outside["infer"].get("is_auxiliary") and kind_of(outside) != "factor":
        raise ValueError(
            f"guide: expected one density for each datum; got {outside['name']!r}, an automatic guide's draw of all "
            "latents of all data together; use AutoNormal, write the guide by hand, leave it out (None), or ask for "
            "one number for all data, joint=True."
        )
    kind = kind_of(outside) if outside["is_observed"] else "a global latent"
    kind = "a factor" if kind == "factor" else "observed" if outside["is_observed"] else kind
    raise ValueError(
        f"model, guide: expected every site inside the plate {plate!r} over data; got site {outside['name']!r} outside "
        f"of it, {kind}; log p(x) has no value for each datum then: fix its value and leave its density out, "
        f"poutine.block(poutine.condition(model, data={{{outside['name']!r}: ...}}), hide=[{outside['name']!r}]), or "
        "move it into the plate, under the same name in model and guide; or ask for one number for all data, "
        "joint=True."
    )
