"""DICOM files as hospitals have them, to 8-bit pixels. Needs the extra `dicom`; imported only where a file is DICOM.

    a path, bytes or a folder -> load.py -> [child process: child.py -> series.py, frames.py] -> pixels -> montage.py

Whatever touches a file's content runs in the child, which has limits of memory and time, writes no file, and answers
with numbers, pixels, and sentences that are this package's own: no text of a header ever leaves it.
"""
