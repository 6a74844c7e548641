"""Wire ids: custom_ids that carry the proof of whose they are, and back."""

import base64
import hashlib
import re
import zlib

import msgspec

PLAIN, UTF8, HEX = "p", "u", "x"
MARK_CHARS = 7
HASH_CHARS = 6
TAIL_CHARS = 1 + 1 + MARK_CHARS + HASH_CHARS + 1
BODY_CHARS = 64 - TAIL_CHARS

_ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
_PLAIN = re.compile(rf"[A-Za-z0-9_-]{{1,{BODY_CHARS}}}")
_HEX = re.compile(r"(?:[0-9a-f]{2}){25,32}")
_WIRE = re.compile(rf"[A-Za-z0-9_-]{{{TAIL_CHARS},{BODY_CHARS + TAIL_CHARS}}}")
_MARK, _HASH = -MARK_CHARS - HASH_CHARS - 1, -HASH_CHARS - 1


class Unfit(ValueError):
    """A custom_id that does not fit into 64 characters with its proof."""

    def __init__(self) -> None:
        super().__init__(
            f"a custom_id takes up to {BODY_CHARS} of the characters A-Z a-z 0-9 _ -, "
            f"64 lowercase hex digits, or {BODY_CHARS * 3 // 4} bytes of anything else"
        )


class WireId(msgspec.Struct, frozen=True):
    """A custom_id, the mark of the shard that it belongs to, and the short hash of its request."""

    custom_id: str
    mark: str
    request_hash: str

    def __str__(self) -> str:
        packed = pack(self.custom_id)
        return packed + self.mark + self.request_hash + check(packed, self.request_hash)


def parse(text: str) -> WireId | None:
    """Read a wire id back, or None where the text is not one of ours."""
    if _WIRE.fullmatch(text) is None:
        return None
    packed, request_hash = text[:_MARK], text[_HASH:-1]
    if packed[-2] != "-" or check(packed, request_hash) != text[-1]:
        return None
    custom_id = _unpack(packed[-1], packed[:-2])
    return None if custom_id is None else WireId(custom_id, text[_MARK:_HASH], request_hash)


def pack(custom_id: str) -> str:
    """Write a custom_id as its wire id begins, up to the mark."""
    form, body = _pack(custom_id)
    return f"{body}-{form}"


def check(packed: str, request_hash: str) -> str:
    """Compute the last character; the mark is left out, for it is proved by being the batch's own."""
    return _ALPHABET[zlib.crc32(f"{packed}{request_hash}".encode()) & 63]


def mark_of(data: bytes) -> str:
    """Hash what a shard is to a few characters of the API's alphabet."""
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest())[:MARK_CHARS].decode()


def request_hash_of(digest: bytes) -> str:
    """Shorten the digest of a request's content."""
    return base64.urlsafe_b64encode(digest[:6])[:HASH_CHARS].decode()


def _pack(custom_id: str) -> tuple[str, str]:
    if _PLAIN.fullmatch(custom_id):
        return PLAIN, custom_id
    if _HEX.fullmatch(custom_id):
        return HEX, _base64(bytes.fromhex(custom_id))
    try:
        body = _base64(custom_id.encode())
    except UnicodeEncodeError:
        raise Unfit from None
    if len(body) > BODY_CHARS:
        raise Unfit
    return UTF8, body


def _unpack(form: str, body: str) -> str | None:
    if form == PLAIN:
        return body or None
    if form not in {UTF8, HEX}:
        return None
    try:
        data = base64.urlsafe_b64decode(body + "=" * (-len(body) % 4))
        custom_id = data.hex() if form == HEX else data.decode()
    except ValueError:
        return None
    return custom_id if _is_canonical(custom_id, form, body) else None


def _is_canonical(custom_id: str, form: str, body: str) -> bool:
    try:
        return _pack(custom_id) == (form, body)
    except Unfit:
        return False


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
