"""What a file is, as far as its name and its first bytes tell."""

from __future__ import annotations

import re

IMAGE_SUFFIXES = frozenset(
    b".apng .avif .avifs .bmp .dib .exr .gif .hdr .heic .heif .hif .ico .j2c .j2k .jfif .jp2 .jpe .jpeg .jpf .jpg .jpx "
    b".3fr .arw .cr2 .cr3 .dng .erf .kdc .mef .mos .mrw .nef .nrw .orf .pef .raf .rw2 .rwl .sr2 .srf .srw .x3f "
    b".jxl .mpo .pbm .pgm .png .pnm .ppm .psd .qoi .tga .tif .tiff .webp".split()
)

# Suffixes that settle that a file is something else, so that it need not be opened to find out.
OTHER_SUFFIXES = frozenset(
    b".arrow .avi .bz2 .c .cfg .conf .cpp .css .csv .db .doc .docx .feather .gz .h .h5 .hdf5 .htm .html .idx "
    b".inprogress .ini .ipynb .jpgw .js .json .jsonl .lock .log .lst .m4a .mat .md .md5 .mkv .mov .mp3 .mp4 .mpeg .mpg "
    b".ndjson .npy .npz .onnx .parquet .pdf .pgw .pickle .pkl .pptx .pt .pth .py .pyc .rar .rst .safetensors .sh .sha1 "
    b".sha256 .sqlite .srt .svg .tar .tfrecord .tfw .tgz .toml .ts .tsv .txt .wav .webm .xls .xlsx .xml .xz .yaml .yml "
    b".zip .zst .7z".split()
)

FIRST_BYTES = 32

_SIGNATURES = re.compile(
    rb"\xff\xd8\xff"  # JPEG
    rb"|\x89PNG\r\n\x1a\n"
    rb"|GIF8[79]a"
    rb"|RIFF....WEBP"
    rb"|II(?:\*\0|\+\0\x08\0)|MM(?:\0\*|\0\+\0\x08)"  # TIFF, BigTIFF
    rb"|BM.{12}[\x0c\x10\x28\x34\x38\x40\x6c\x7c]\0\0\0"  # BMP with the size of a header that exists
    rb"|....ftyp(?:avi[fs]|hei[cxms]|hev[cx]|mif1|msf1|crx )"  # AVIF, HEIF, a camera's raw format
    rb"|FUJIFILMCCD-RAW|IIR[OS]|MMOR|IIU\0|FOVb|\0MRM"  # raw formats of cameras
    rb"|\0\0\0\x0c(?:jP  |JXL )\r\n\x87\n"  # JPEG 2000, JPEG XL
    rb"|\xff\x4f\xff\x51"  # JPEG 2000 without its box
    rb"|8BPS\0|qoif|\x76\x2f\x31\x01|#\?RADIANCE"  # PSD, QOI, OpenEXR, Radiance
    rb"|P[1-6]\s+[0-9#]",  # PNM
    re.DOTALL,
)


def is_image(first_bytes: bytes) -> bool:
    """Whether a file that starts so is an image, whatever its name."""
    return _SIGNATURES.match(first_bytes) is not None


def suffix(name: bytes) -> bytes:
    """The last suffix in lower case with its dot; empty for names without one."""
    dot = name.rfind(b".")
    return name[dot:].lower() if dot > 0 else b""
