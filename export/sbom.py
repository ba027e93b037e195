"""A kit's bill of materials, CycloneDX 1.6 (ECMA-424, 2024): the wheels, and the model with its files."""

import uuid
from datetime import datetime, timezone
from email.message import Message
from typing import Any

from ..runtime.bundle import SIGNATURE
from ..runtime.manifest import MANIFEST, Manifest
from .wheelhouse import Wheel, Wheelhouse

Json = dict[str, Any]
_MODEL = "bundle"
# Longer ones are the licence's text.
_LONGEST_LICENSE = 64


def make_sbom(
    wheelhouse: Wheelhouse, manifest: Manifest, digests: dict[str, str], made: datetime | None = None
) -> Json:
    """The bill of materials, to be written as JSON.

    digests: the sha256 of each of the bundle's files that its manifest does not list, the manifest among them. made:
    the time to state, by default now.
    """
    own = wheelhouse.wheels["medvlm"]
    libraries = [_library(wheel) for name, wheel in sorted(wheelhouse.wheels.items()) if name != "medvlm"]
    needs = [
        {"ref": _purl(wheelhouse.wheels[name]), "dependsOn": sorted(_purl(wheelhouse.wheels[n]) for n in needed)}
        for name, needed in sorted(wheelhouse.needs.items())
    ]
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        # The same contents have the same number.
        "serialNumber": uuid.uuid5(uuid.NAMESPACE_OID, wheelhouse.lock() + digests[MANIFEST]).urn,
        "version": 1,
        "metadata": {
            "timestamp": (made or datetime.now(timezone.utc)).isoformat(timespec="seconds"),
            "component": {**_library(own), "type": "application"},
        },
        "components": [*libraries, _model(manifest, digests)],
        "dependencies": [*needs, {"ref": _MODEL}],
    }


def _library(wheel: Wheel) -> Json:
    component: Json = {
        "type": "library",
        "bom-ref": _purl(wheel),
        "name": wheel.name,
        "version": wheel.version,
        "purl": _purl(wheel),
        "hashes": [_hash(wheel.sha256)],
        "properties": [{"name": "medvlm:wheel", "value": wheel.path.name}],
    }
    licenses = _licenses(wheel.metadata)
    return {**component, "licenses": licenses} if licenses else component


def _purl(wheel: Wheel) -> str:
    return f"pkg:pypi/{wheel.name}@{wheel.version}"


def _hash(sha256: str) -> Json:
    return {"alg": "SHA-256", "content": sha256}


def _licenses(metadata: Message) -> list[Json]:
    """The licence as the wheel states it: an SPDX expression (PEP 639), a short text, or its classifiers."""
    if metadata["License-Expression"]:
        return [{"expression": metadata["License-Expression"]}]
    text = (metadata["License"] or "").strip()
    if text and "\n" not in text and len(text) <= _LONGEST_LICENSE:
        return [{"license": {"name": text}}]
    classifiers = [c for c in metadata.get_all("Classifier") or () if c.startswith("License ::")]
    return [{"license": {"name": classifier.rpartition(" :: ")[2]}} for classifier in classifiers]


def _model(manifest: Manifest, digests: dict[str, str]) -> Json:
    """The bundle, and each of its files."""
    files = {**{name: entry.sha256 for name, entry in manifest.files.items()}, **digests}
    return {
        "type": "machine-learning-model",
        "bom-ref": _MODEL,
        "name": manifest.source.name,
        "version": digests[MANIFEST],
        "description": f"ONNX bundle written by {manifest.created_by}; its version is the sha256 of {MANIFEST}",
        "hashes": [_hash(digests[MANIFEST])],
        "components": [
            {"type": "file", "bom-ref": f"{_MODEL}/{name}", "name": f"{_MODEL}/{name}", "hashes": [_hash(digest)]}
            for name, digest in sorted(files.items())
        ],
        "properties": [{"name": "medvlm:signed", "value": str(SIGNATURE in digests).lower()}],
    }
