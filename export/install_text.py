"""A kit's INSTALL.md: the commands for the machine without internet."""

from .target import Target

_TEXT = """\
# Installing medvlm without internet

medvlm asks the medical vision-language model MedVLM-R1 about images. It is a research model and no medical device: it
must not be used to diagnose or treat anyone.

This folder holds everything: the model (`bundle`), the Python packages (`wheelhouse`), their versions and digests
(`requirements.txt`), what it all consists of (`sbom.cdx.json`, CycloneDX), and the digest of every file
(`SHA256SUMS`). It is for {platform} and Python {python}, which must be there. Nothing below uses the network. Type the
commands in this folder.

## 1. Compare

Nothing was changed on the way if every line says OK:

```{shell}
{check}
```

Whoever made this folder was told the SHA-256 of `SHA256SUMS` itself; compare it with this one:

```{shell}
{digest}
```

## 2. Install

```{shell}
{install}
```

pip refuses every package that has not the digest in `requirements.txt`.

## 3. Verify the model

{verify_text}

```{shell}
{verify}
```

## 4. Ask

```{shell}
{run} ask bundle IMAGE.png -q "Which is it?
A) MRI
B) CT"
```

`--audit FILE` keeps a sealed log of the answers. `{run} --help` says the rest.
{page}"""
_PAGE = """
## 5. A page for the browser

```{shell}
{run} serve bundle
```

It prints the page's address, which only this machine reaches. `Ctrl-C` ends it.
"""
_SIGNED = """\
The model is signed. `PUBLIC_KEY.pem` is the key of whoever signed it. Get it another way than this folder: a key that
came with it proves nothing."""
_UNSIGNED = """\
The model is not signed: this finds damage, and not somebody who changed the model together with its digests."""


def install_text(target: Target, *, signed: bool, serves: bool = False) -> str:
    """The text for a target; signed: whether the bundle is; serves: whether the kit has what `medvlm serve` needs."""
    commands = _windows(target) if target.windows else _posix(target)
    run = commands["run"]
    verify = f"{run} verify bundle" + (" --public-key PUBLIC_KEY.pem" if signed else "")
    return _TEXT.format(
        platform=target.tag,
        python=target.python,
        verify=verify,
        verify_text=_SIGNED if signed else _UNSIGNED,
        page=_PAGE.format(**commands) if serves else "",
        **commands,
    )


def _posix(target: Target) -> dict[str, str]:
    # macOS 14 has no sha256sum.
    sums = "shasum -a 256" if target.tag.startswith("macosx") else "sha256sum"
    return {
        "shell": "sh",
        "check": f"{sums} --check SHA256SUMS",
        "digest": f"{sums} SHA256SUMS",
        "install": f"python{target.python} -m venv medvlm-venv\n{_pip('medvlm-venv/bin/python')}",
        "run": "medvlm-venv/bin/medvlm",
    }


def _windows(target: Target) -> dict[str, str]:
    return {
        "shell": "powershell",
        "check": (
            "Get-Content SHA256SUMS | ForEach-Object { $sum, $file = $_ -split '  ', 2\n"
            '  if ((Get-FileHash $file).Hash -eq $sum) { "${file}: OK" } else { "${file}: CHANGED" } }'
        ),
        "digest": "(Get-FileHash SHA256SUMS).Hash",
        "install": f"py -{target.python} -m venv medvlm-venv\n" + _pip("medvlm-venv\\Scripts\\python"),
        "run": "medvlm-venv\\Scripts\\medvlm",
    }


def _pip(python: str) -> str:
    return f"{python} -m pip install --no-index --find-links wheelhouse --require-hashes -r requirements.txt"
