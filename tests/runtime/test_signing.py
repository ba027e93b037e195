"""Signed bundles: every change of one shows, and the signatures are those of OpenSSF's own package."""

import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from click.testing import CliRunner, Result
from medvlm.runtime import InputError, MedVLM
from medvlm.runtime.bundle import open_bundle
from medvlm.runtime.cli import main
from medvlm.runtime.signing import check_signing_key, sign_bundle, signature_faults

model_signing = pytest.importorskip("model_signing", reason="needs the sign extra")

NOT_SIGNED = "the files are not those that were signed"
OTHER_KEY = "model.sig was not made with this key, or was changed"


class Keys(NamedTuple):
    private: Path
    public: Path


def make_keys(folder: Path) -> Keys:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    pem = serialization.Encoding.PEM
    private, public = folder / "key.pem", folder / "key.pub.pem"
    traditional, plain = serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
    private.write_bytes(key.private_bytes(pem, traditional, plain))
    public.write_bytes(key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo))
    return Keys(private, public)


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    return make_keys(tmp_path_factory.mktemp("keys"))


@pytest.fixture
def signed(bundle: Path, keys: Keys) -> Path:
    """A bundle with a signature, to be damaged."""
    sign_bundle(bundle, keys.private)
    return bundle


def verify(bundle: Path, public: Path) -> Result:
    return CliRunner().invoke(main, ["verify", str(bundle), "--public-key", str(public)])


def faults(bundle: Path, keys: Keys) -> list[str]:
    """The lines with which verifying fails."""
    result = verify(bundle, keys.public)
    assert (result.exit_code, result.stdout) == (1, "")
    return [line for line in result.stderr.splitlines() if line != "Hashing"]


def accept(bundle: Path, name: str) -> None:
    """Make the manifest agree with a file, as whoever changed it would."""
    manifest = json.loads((bundle / "manifest.json").read_text())
    content = (bundle / name).read_bytes()
    manifest["files"][name] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (bundle / "manifest.json").write_text(json.dumps(manifest))


def test_signed_bundle_verifies_and_loads(signed: Path, keys: Keys) -> None:
    result = verify(signed, keys.public)
    assert (result.exit_code, result.stdout.endswith("all as the manifest says, and as it was signed\n")) == (0, True)
    assert signature_faults(signed, keys.public) == []
    assert MedVLM.load(signed, threads=1, hash_files=True)
    assert CliRunner().invoke(main, ["verify", str(signed)]).exit_code == 0


def test_bundle_may_be_moved_and_reached_through_a_link(signed: Path, keys: Keys, tmp_path: Path) -> None:
    signed.rename(tmp_path / "other name")
    (tmp_path / "link").symlink_to("other name")
    assert verify(tmp_path / "link", keys.public).exit_code == 0


def test_signature_is_one_of_openssf_s_package(signed: Path, keys: Keys) -> None:
    config = model_signing.verifying.Config().use_elliptic_key_verifier(public_key=keys.public)
    config.verify(signed, signed / "model.sig")
    (signed / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=r"Hash mismatch for \W*tokenizer\.json"):
        config.verify(signed, signed / "model.sig")


def test_signature_of_openssf_s_command_verifies(bundle: Path, keys: Keys) -> None:
    command = [sys.executable, "-m", "model_signing", "sign", "key", str(bundle), "--private_key", str(keys.private)]
    subprocess.run([*command, "--signature", str(bundle / "model.sig")], check=True, capture_output=True, timeout=60)
    assert verify(bundle, keys.public).exit_code == 0
    (bundle / "tokenizer.json").write_text("{}")
    assert verify(bundle, keys.public).exit_code == 1


def change(bundle: Path) -> None:
    content = bytearray((bundle / "decoder.onnx.data").read_bytes())
    content[len(content) // 2] ^= 1
    (bundle / "decoder.onnx.data").write_bytes(content)


def change_with_manifest(bundle: Path) -> None:
    change(bundle)
    accept(bundle, "decoder.onnx.data")


def change_manifest(bundle: Path) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["preprocessing"]["max_pixels"] = 50_000
    (bundle / "manifest.json").write_text(json.dumps(manifest))


def add(bundle: Path) -> None:
    (bundle / "extra.bin").write_bytes(b"1")


def add_with_manifest(bundle: Path) -> None:
    add(bundle)
    accept(bundle, "extra.bin")


def add_what_git_keeps(bundle: Path) -> None:
    (bundle / ".gitattributes").write_bytes(b"1")
    accept(bundle, ".gitattributes")


def add_in_a_folder(bundle: Path) -> None:
    (bundle / "folder").mkdir()
    (bundle / "folder" / "extra").write_bytes(b"1")


def remove(bundle: Path) -> None:
    """The only file that a manifest may do without: prefill then goes through the decoder."""
    manifest = json.loads((bundle / "manifest.json").read_text())
    for name in ("prefill.onnx", "prefill.onnx.data"):
        (bundle / name).unlink()
        del manifest["files"][name]
    (bundle / "manifest.json").write_text(json.dumps(manifest))


def rename(bundle: Path) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text())
    for name in ("prefill.onnx", "prefill.onnx.data"):
        (bundle / name).rename(bundle / f"was-{name}")
        manifest["files"][f"was-{name}"] = manifest["files"].pop(name)
    (bundle / "manifest.json").write_text(json.dumps(manifest))


def swap(bundle: Path) -> None:
    for a, b in (("tokenizer.json", "swap"), ("embeddings.bin", "tokenizer.json"), ("swap", "embeddings.bin")):
        (bundle / a).rename(bundle / b)


def link(bundle: Path) -> None:
    shutil.move(bundle / "decoder.onnx.data", bundle.parent / "outside")
    (bundle / "decoder.onnx.data").symlink_to(bundle.parent / "outside")


@pytest.mark.parametrize(
    "how",
    [
        *(change, change_with_manifest, change_manifest, add, add_with_manifest, add_what_git_keeps, add_in_a_folder),
        *(remove, rename, swap, link),
    ],
)
def test_every_change_of_a_signed_bundle_shows(signed: Path, keys: Keys, how: Callable[[Path], None]) -> None:
    how(signed)
    assert sum(fault.startswith(NOT_SIGNED) for fault in faults(signed, keys)) == 1


@pytest.mark.parametrize("how", [change_with_manifest, change_manifest, add_with_manifest, remove])
def test_without_the_signature_these_would_not_show(signed: Path, how: Callable[[Path], None]) -> None:
    """Or the test before would not need one."""
    how(signed)
    (signed / "model.sig").unlink()
    assert open_bundle(signed, hash_files=True)


@pytest.mark.parametrize("where", ["{bundle}/decoder.onnx.data", "outside"])
def test_hard_link_shows(signed: Path, keys: Keys, tmp_path: Path, where: str) -> None:
    """Whoever has the other name can change the file after it was checked."""
    original = signed / "tokenizer.json"
    other = tmp_path / where.format(bundle=signed)
    other.unlink(missing_ok=True)
    os.link(original, other)
    assert "tokenizer.json is a hard link: it has another name somewhere; copy the bundle" in faults(signed, keys)


def test_signature_that_was_removed_shows(signed: Path, keys: Keys) -> None:
    (signed / "model.sig").unlink()
    assert faults(signed, keys) == ["there is no model.sig: the bundle was not signed, or its signature was removed"]


def test_signature_of_another_key_shows(signed: Path, keys: Keys, tmp_path: Path) -> None:
    change_with_manifest(signed)
    sign_bundle(signed, make_keys(tmp_path).private)
    (fault,) = faults(signed, keys)
    assert fault.startswith(OTHER_KEY)


def signed_statement(bundle: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    import base64

    signature = json.loads((bundle / "model.sig").read_text())
    return signature, json.loads(base64.b64decode(signature["dsseEnvelope"]["payload"]))


def test_statement_that_was_changed_shows(signed: Path, keys: Keys) -> None:
    """The digests in it agree with the files, and the signature does not agree with it."""
    import base64

    before = (signed / "tokenizer.json").read_bytes()
    (signed / "tokenizer.json").write_bytes(before + b" ")
    accept(signed, "tokenizer.json")
    signature, statement = signed_statement(signed)
    everything = hashlib.sha256()
    for resource in statement["predicate"]["resources"]:
        digest = hashlib.sha256((signed / resource["name"]).read_bytes())
        resource["digest"] = digest.hexdigest()
        everything.update(digest.digest())
    statement["subject"][0]["digest"]["sha256"] = everything.hexdigest()
    signature["dsseEnvelope"]["payload"] = base64.b64encode(json.dumps(statement).encode()).decode()
    (signed / "model.sig").write_text(json.dumps(signature))
    (fault,) = faults(signed, keys)
    assert fault.startswith(OTHER_KEY)


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"null", b"\xff\xfe", b'{"dsseEnvelope": 1}', b"[" * 100_000])
def test_signature_that_is_none_shows_in_one_line(signed: Path, keys: Keys, content: bytes) -> None:
    (signed / "model.sig").write_bytes(content)
    (fault,) = faults(signed, keys)
    assert fault.startswith(OTHER_KEY)


def test_signature_is_looked_at_before_the_manifest_is_read(signed: Path, keys: Keys) -> None:
    (signed / "manifest.json").write_text("no manifest")
    result = verify(signed, keys.public)
    assert result.exit_code == 2
    assert result.stderr.splitlines()[0].startswith(NOT_SIGNED)


def test_signing_again_replaces_the_signature(signed: Path, keys: Keys) -> None:
    change_with_manifest(signed)
    sign_bundle(signed, keys.private)
    assert verify(signed, keys.public).exit_code == 0
    assert sorted(path.name for path in signed.iterdir() if path.name.startswith(".")) == []


@pytest.mark.parametrize("content", [None, b"", b"text", b"-----BEGIN EC PRIVATE KEY-----\nAAAA\n"])
def test_key_that_is_none_is_refused_in_one_line(bundle: Path, tmp_path: Path, content: bytes | None) -> None:
    key = tmp_path / "key"
    if content is not None:
        key.write_bytes(content)
    with pytest.raises(InputError, match="openssl ecparam -name prime256v1 -genkey -noout -out KEY makes one"):
        check_signing_key(key)
    result = verify(bundle, key)
    assert (result.exit_code, result.stdout, len(result.stderr.splitlines())) == (2, "", 1)
    assert "public key" in result.stderr


def test_key_of_another_kind_is_refused_in_words(tmp_path: Path) -> None:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ed25519

    pem, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    key = ed25519.Ed25519PrivateKey.generate()
    (tmp_path / "key").write_bytes(key.private_bytes(pem, form, serialization.NoEncryption()))
    with pytest.raises(InputError, match=r"key cannot sign \(it is no elliptic curve's key\)"):
        check_signing_key(tmp_path / "key")


def test_file_that_cannot_be_read_is_not_called_a_bad_signature(
    signed: Path, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As root every file can be."""
    real_open = io.open

    def refuse(file: Any, *rest: Any, **others: Any) -> Any:
        if str(file).endswith("embeddings.bin"):
            raise PermissionError(13, "Permission denied", str(file))
        return real_open(file, *rest, **others)

    monkeypatch.setattr("builtins.open", refuse)
    monkeypatch.setattr(io, "open", refuse)
    (fault,) = signature_faults(signed, keys.public)
    assert fault == "embeddings.bin cannot be read (Permission denied), so that the signature proves nothing"


def test_bundle_that_is_not_there_is_one_line(keys: Keys, tmp_path: Path) -> None:
    result = verify(tmp_path / "absent", keys.public)
    assert (result.exit_code, result.stdout, len(result.stderr.splitlines())) == (2, "", 1)
    assert "absent is not a directory" in result.stderr


def test_private_and_public_key_are_not_confused(signed: Path, keys: Keys) -> None:
    assert "is no public key" in verify(signed, keys.private).stderr
    with pytest.raises(InputError, match="cannot sign"):
        check_signing_key(keys.public)


def test_without_the_extra_one_line_says_what_to_install(
    bundle: Path, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "model_signing"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "model_signing.hashing", None)
    result = verify(bundle, keys.public)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == "Error: model_signing.hashing is not installed; pip install 'medvlm[sign]'\n"


def test_what_differs_is_named(signed: Path, keys: Keys) -> None:
    (signed / "tokenizer.json").rename(signed / "other.json")
    change(signed)
    assert signature_faults(signed, keys.public) == [
        f"{NOT_SIGNED}: decoder.onnx.data changed; other.json added; tokenizer.json missing"
    ]
