"""Encryption keys: where they are read from, and what one of them does.

AES-256-GCM. Every ciphertext is bound to its row, so that it can be decrypted nowhere else. Three
things are derived from one secret: the cipher's key, a key for hashes, and the key's public name.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import os

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from service.foundation.settings import Settings

_SECRET_BYTES = 32
_NONCE_BYTES = 12
_NAME_BYTES = 8


class KeyTrouble(Exception):
    """The encryption keys are missing, wrong or malformed; the text says what to change."""


class Tampered(Exception):
    """Stored bytes are not those that were written there: damaged, changed, or moved."""


class Cipher:
    """Encrypts and decrypts with 32 bytes."""

    def __init__(self, secret: bytes) -> None:
        self._cipher = AESGCM(secret)

    def encrypt(self, plain: bytes, about: bytes) -> bytes:
        """Encrypt, bound to `about`: a nonce, the ciphertext and its tag."""
        nonce = os.urandom(_NONCE_BYTES)
        return nonce + self._cipher.encrypt(nonce, plain, about)

    def decrypt(self, sealed: bytes, about: bytes) -> bytes:
        """Undo `encrypt`; raises `Tampered`."""
        try:
            return self._cipher.decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], about)
        except (InvalidTag, ValueError) as error:
            raise Tampered("what is kept was damaged, changed or moved") from error


class EncryptionKey(Cipher):
    """One key of the deployment's: encrypts, decrypts and makes keyed hashes."""

    def __init__(self, secret: bytes) -> None:
        """Derive everything from a secret of 32 random bytes; `ValueError` for any other length."""
        if len(secret) != _SECRET_BYTES:
            raise ValueError(f"a key is {_SECRET_BYTES} bytes")
        super().__init__(_derive(secret, b"encryption", 32))
        self.key_id = _derive(secret, b"name", _NAME_BYTES).hex()
        self._for_hashes = _derive(secret, b"hashes", 32)

    def keyed_hash(self, content: bytes) -> str:
        """HMAC-SHA-256, hexadecimal; without the key nobody can test a walk against it."""
        return hmac.new(self._for_hashes, content, hashlib.sha256).hexdigest()


def new_secret() -> str:
    """A new key in the form that the setting takes."""
    return base64.urlsafe_b64encode(os.urandom(_SECRET_BYTES)).decode()


def read_keys(settings: Settings) -> tuple[EncryptionKey, ...]:
    """The deployment's keys, from the setting or from a file; empty if neither is set.

    Keys have commas or line ends between them. Raises `KeyTrouble`, which never shows a key.
    """
    secret, file = settings.encryption_keys, settings.encryption_keys_file
    if secret is not None and file is not None:
        raise KeyTrouble("set GAITID_ENCRYPTION_KEYS or GAITID_ENCRYPTION_KEYS_FILE, not both")
    listed = None if secret is None else secret.get_secret_value()
    source = "GAITID_ENCRYPTION_KEYS"
    if file is not None:
        source = f"GAITID_ENCRYPTION_KEYS_FILE ({file})"
        try:
            listed = file.read_text(encoding="ascii")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not ASCII text"
            raise KeyTrouble(f"{source} cannot be read: {reason}") from error
    if listed is None:
        return ()
    texts = [text.strip() for text in listed.replace("\n", ",").split(",")]
    keys = tuple(_key(text, source, position) for position, text in enumerate(filter(None, texts)))
    if not keys:
        raise KeyTrouble(f"{source} lists no key; `gaitid encryption new-key` makes one")
    if len({key.key_id for key in keys}) < len(keys):
        raise KeyTrouble(f"{source} lists a key twice")
    return keys


def _key(text: str, source: str, position: int) -> EncryptionKey:
    try:
        return EncryptionKey(base64.b64decode(text, b"-_", validate=True))
    except (binascii.Error, ValueError):
        # Without the cause: its text may show a part of the key.
        raise KeyTrouble(
            f"{source}: key number {position + 1} is not 32 bytes in URL-safe Base64; "
            "`gaitid encryption new-key` makes one"
        ) from None


def _derive(secret: bytes, purpose: bytes, length: int) -> bytes:
    return HKDF(SHA256(), length, salt=None, info=b"gaitid " + purpose).derive(secret)
