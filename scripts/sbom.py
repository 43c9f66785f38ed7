"""Write the software bill of materials of an image: CycloneDX 1.6, as JSON.

    python scripts/sbom.py --packages SITE_PACKAGES --system /var/lib/dpkg/status OUT

It lists what is installed, and not what was asked for: every Python package by its metadata, and
every package of Debian by dpkg's own list. It needs only requirements/sbom.lock, in an environment
of its own. Serial number and order follow from the contents, so the same packages make the same
file, and the same layer.
"""

from __future__ import annotations

import argparse
import re
import uuid
from collections.abc import Iterable, Iterator
from importlib.metadata import Distribution, distributions
from pathlib import Path

from cyclonedx.contrib.license.factories import LicenseFactory
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL

LONGEST_LICENCE = 100  # some packages have the whole text where its name belongs


def python_components(folder: Path) -> Iterator[Component]:
    """Yield a component for every Python package that is installed in `folder`."""
    for package in distributions(path=[str(folder)]):
        name = re.sub(r"[-_.]+", "-", package.name).lower()
        licence = licence_of(package)
        yield component(
            PackageURL("pypi", name=name, version=package.version),
            licences=[LicenseFactory().make_from_string(licence)] if licence else [],
        )


def licence_of(package: Distribution) -> str | None:
    """Return what a package says about its licence, if it is a name and not a text."""
    for key in ("License-Expression", "License"):
        value = package.metadata.get(key)
        if value and value != "UNKNOWN" and len(value) <= LONGEST_LICENCE and "\n" not in value:
            return value
    return None


def system_components(status: Path) -> Iterator[Component]:
    """Yield a component for every package that dpkg's list has as installed."""
    for entry in status.read_text(encoding="utf-8").split("\n\n"):
        fields = dict(re.findall(r"^(\w[\w-]*): (.*)$", entry, re.MULTILINE))
        if fields.get("Status", "").endswith(" installed"):
            architecture = {"arch": fields["Architecture"]}
            yield component(
                PackageURL("deb", "debian", fields["Package"], fields["Version"], architecture)
            )


def component(purl: PackageURL, licences: Iterable[object] = ()) -> Component:
    """Return the component that a package URL names."""
    return Component(
        type=ComponentType.LIBRARY,
        name=purl.name,
        version=purl.version,
        purl=purl,
        bom_ref=purl.to_string(),
        licenses=licences,
    )


def bill_of(components: Iterable[Component]) -> Bom:
    """Return the bill, whose serial number follows from what it lists."""
    listed = list(components)
    names = "\n".join(sorted(str(each.purl) for each in listed))
    return Bom(components=listed, serial_number=uuid.uuid5(uuid.NAMESPACE_URL, names))


def main() -> None:
    """Write the bill."""
    parser = argparse.ArgumentParser(description="Write a software bill of materials.")
    parser.add_argument("--packages", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--system", type=Path, required=True, metavar="FILE")
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    bill = bill_of([*python_components(options.packages), *system_components(options.system)])
    # The time of the build would make a new layer of the same packages.
    text = re.sub(r'\n *"timestamp": "[^"]*",?', "", JsonV1Dot6(bill).output_as_string(indent=1))
    options.out.write_text(text + "\n", encoding="utf-8")
    print(f"{options.out}: {len(bill.components)} components")


if __name__ == "__main__":
    main()
