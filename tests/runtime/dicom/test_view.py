"""What a user writes about how a file is shown."""

import pytest
from medvlm.runtime.dicom.view import DEFAULT_VIEW, View, Window, read_view
from medvlm.runtime.errors import InputError


@pytest.mark.parametrize(
    ("text", "window"),
    [
        ("40,400", (40, 400)),
        (" -600 , 1500 ", (-600, 1500)),
        ("0.5,1e3", (0.5, 1000)),
        ("lung", (-600, 1500)),
        ("bone", (400, 1800)),
        ("Brain", (40, 80)),
        ("soft tissue", (50, 400)),
        ("soft-tissue", (50, 400)),
    ],
)
def test_windows_are_two_numbers_or_a_preset(text: str, window: tuple[float, float]) -> None:
    read = read_view(window=text).window
    assert read is not None
    assert (read.center, read.width) == window


@pytest.mark.parametrize(
    "text", ["", "liver", "40", "40,400,1", "a,b", "40,0", "40,-1", "nan,5", "1,inf", "1,\x1b[31m"]
)
def test_other_windows_are_refused_and_the_forms_named(text: str) -> None:
    with pytest.raises(InputError, match="CENTER,WIDTH or lung, bone, brain, soft-tissue") as error:
        read_view(window=text)
    assert str(error.value).isprintable()


def test_montages_are_rows_and_columns() -> None:
    assert read_view(montage="3x4").montage == (3, 4)
    assert read_view(montage=" 2 X 2 ").montage == (2, 2)
    for text in ("3", "3x", "3x3x3", "0x3", "11x1", "-1x2", "axb", "9999x9999"):
        with pytest.raises(InputError, match="such as 3x3"):
            read_view(montage=text)


def test_frames_are_counted_from_1_and_exclude_a_montage() -> None:
    assert read_view(frame=1) == View(frame=1)
    with pytest.raises(InputError, match="the frame is 0; the first is 1"):
        read_view(frame=0)
    with pytest.raises(InputError, match="exclude each other"):
        View(frame=1, montage=(2, 2))


def test_nothing_asked_for_is_the_default() -> None:
    assert read_view() == DEFAULT_VIEW
    assert View(window=Window(1, 2)) != DEFAULT_VIEW
