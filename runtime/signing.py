"""Signatures of whole bundles, in the format of OpenSSF's model-signing and made by its package.

The format: https://github.com/ossf/model-signing-spec (1.0, 2025): the sha256 of every file, manifest.json included, in
an in-toto statement, signed with an elliptic curve key (DSSE) in a Sigstore bundle, BUNDLE/model.sig. Only its way of
keys is used, which needs no service: `model_signing verify key` of that package checks the same file.
"""

import contextlib
import io
import os
import re
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from .bundle import SIGNATURE
from .errors import BundleError, InputError, MedVLMError

if TYPE_CHECKING:
    from model_signing.hashing import Config as HashingConfig
    from model_signing.signing import Config

# A bundle's has some kilobytes.
_MAX_SIGNATURE_BYTES = 1 << 20
# How the package lists what differs.
_DIFFERENCES = {
    "changed": re.compile(r"Hash mismatch for \\*'([^'\\]+)\\*': Expected"),
    "added": re.compile(r"Extra files found in model \\*'[^']*': ([^\"'\]]+)"),
    "missing": re.compile(r"Missing files in model \\*'[^']*': ([^\"'\]]+)"),
}
_NEW_KEY = "openssl ecparam -name prime256v1 -genkey -noout -out KEY makes one"


def check_signing_key(key: Path) -> None:
    """Raise `InputError` for a private key that cannot sign, or where model-signing is not installed."""
    _signer(key)


def sign_bundle(directory: Path, key: Path) -> None:
    """Write the bundle's signature. Raises as `check_signing_key`, and `MedVLMError` where it cannot be written."""
    partial = directory / f".{SIGNATURE}.partial"
    try:
        _signer(key).sign(directory.resolve(), partial)
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        partial.replace(directory / SIGNATURE)
    except (OSError, ValueError) as error:
        raise MedVLMError(f"cannot sign {directory}: {error}") from error
    finally:
        partial.unlink(missing_ok=True)


def signature_faults(directory: Path, public_key: Path) -> list[str]:
    """Every way in which a bundle is not what was signed, one line each.

    Raises `InputError` for a public key that is none, where model-signing is not installed, and where no bundle is.
    """
    if not directory.is_dir():
        raise BundleError(f"{directory} is not a directory; give a bundle that medvlm-export wrote")
    verifying = _import("verifying")
    try:
        config = verifying.Config().use_elliptic_key_verifier(public_key=public_key).set_hashing_config(_files())
    except OSError as error:
        raise InputError(f"cannot read the public key {public_key}: {error.strerror}") from None
    except Exception:  # noqa: BLE001 - cryptography raises several kinds without a common base
        raise InputError(
            f"{public_key} is no public key for signatures; openssl ec -in KEY -pubout writes that of KEY"
        ) from None
    shared = _shared_files(directory)
    signature = directory / SIGNATURE
    if not signature.is_file() or signature.is_symlink():
        return [*shared, f"there is no {SIGNATURE}: the bundle was not signed, or its signature was removed"]
    if signature.stat().st_size > _MAX_SIGNATURE_BYTES:
        return [*shared, f"{SIGNATURE} is too large for a signature"]
    try:
        # A warning about older signatures goes to standard output.
        with contextlib.redirect_stdout(io.StringIO()):
            config.verify(directory.resolve(), signature)
    except OSError as error:
        name = Path(error.filename).name if isinstance(error.filename, str) else "a file"
        return [*shared, f"{name} cannot be read ({error.strerror}), so that the signature proves nothing"]
    except Exception as error:  # noqa: BLE001 - as above, and pydantic's for a file of another form
        return [*shared, _fault(error)]
    return shared


def _files() -> "HashingConfig":
    """All files, those of git too, which the package leaves out by default."""
    return _import("hashing").Config().set_ignored_paths(paths=[SIGNATURE], ignore_git_paths=False)


def _fault(error: Exception) -> str:
    text = " ".join(str(error).split())
    if text.startswith("Signature mismatch: "):
        found = [f"{name} {what}" for what, pattern in _DIFFERENCES.items() for name in pattern.findall(text)]
        return f"the files are not those that were signed: {'; '.join(found) or text}"
    if text.startswith("Cannot use"):
        return f"the files are not those that were signed: {text}"
    return f"{SIGNATURE} was not made with this key, or was changed ({text[:200] or type(error).__name__})"


def _shared_files(directory: Path) -> list[str]:
    """A fault for each file with a second name: whoever has that name can change it after it was checked."""
    try:
        paths = sorted(path for path in directory.rglob("*") if not path.is_dir() and path.lstat().st_nlink > 1)
    except OSError as error:
        raise BundleError(f"{directory} cannot be listed ({error.strerror}); check its permissions") from None
    return [f"{path.name} is a hard link: it has another name somewhere; copy the bundle" for path in paths]


def _signer(key: Path) -> "Config":
    signing = _import("signing")
    try:
        return signing.Config().use_elliptic_key_signer(private_key=key).set_hashing_config(_files())
    except OSError as error:
        raise InputError(f"cannot read the private key {key}: {error.strerror}; {_NEW_KEY}") from None
    except AttributeError:
        # The package asks a key of any other kind for its curve.
        raise InputError(f"{key} cannot sign (it is no elliptic curve's key); {_NEW_KEY}") from None
    except Exception as error:  # noqa: BLE001 - cryptography raises several kinds without a common base
        reason = " ".join(str(error).split()).partition(". ")[0][:200]
        raise InputError(f"{key} cannot sign ({reason}); {_NEW_KEY}") from None


def _import(name: str) -> ModuleType:
    try:
        import model_signing.hashing
        import model_signing.signing
        import model_signing.verifying
    except ModuleNotFoundError as error:
        raise InputError(f"{error.name} is not installed; pip install 'medvlm[sign]'") from None
    return getattr(model_signing, name)
