"""Tokens: what counts, and everything that does not."""

import asyncio
import base64
import http.server
import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from steelyard_server.config import ConfigError
from steelyard_server.security import keys, tokens
from steelyard_server.security.errors import Refused
from steelyard_server.security.evidence import Hashed, Proven
from steelyard_server.security.tokens import JwtRules, Jwts

from .conftest import AUDIENCE, Issuer, replace

RULES = JwtRules(frozenset({"RS256", "ES256", "EdDSA"}), AUDIENCE, None, 30.0, 3600.0)


def verify(token, path, rules=RULES):
    with ThreadPoolExecutor(1) as pool:
        return asyncio.run(Jwts(rules, keys.FileKeys(path, rules.algorithms), pool).prove(token))


def reason(token, path, rules=RULES):
    with pytest.raises(Refused) as refused:
        verify(token, path, rules)
    return refused.value.reason


@pytest.fixture
def path(tmp_path, issuer):
    file = tmp_path / "keys.pem"
    file.write_bytes(issuer.public_pem)
    return file


def unsigned(header, claims):
    def part(value):
        return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()

    return f"{part(header)}.{part(claims)}."


def test_a_right_token_is_proven_until_it_expires(path, issuer):
    end = int(time.time()) + 100
    proven = verify(issuer.token(exp=end, team="vision"), path)
    assert isinstance(proven, Proven)
    assert (proven.claims["sub"], proven.claims["team"]) == ("trainer", "vision")
    assert proven.expires_at == end + 30


def from_now(claims):
    """The times of claims are given in seconds from now: of when the test runs, however long others took."""
    now = int(time.time())
    return {name: now + value if isinstance(value, int) else value for name, value in claims.items()}


@pytest.mark.parametrize(
    ("claims", "why"),
    [
        ({"exp": None}, "token_claim_missing"),
        ({"aud": None}, "token_claim_missing"),
        ({"aud": "another"}, "token_audience"),
        ({"exp": -40, "iat": -100}, "token_expired"),
        ({"exp": 7300}, "token_lives_too_long"),
        ({"exp": 7300, "iat": None}, "token_lives_too_long"),
        ({"exp": 60, "iat": -7200}, "token_lives_too_long"),
        ({"iat": 600, "exp": 700}, "token_not_yet_valid"),
        ({"nbf": 600}, "token_not_yet_valid"),
        ({"exp": "soon"}, "token_malformed"),
        ({"exp": float("inf")}, "token_malformed"),
        ({"iat": "then"}, "token_not_yet_valid"),
    ],
)
def test_a_claim_that_is_not_as_it_must_be_is_refused(path, issuer, claims, why):
    assert reason(issuer.token(**from_now(claims)), path) == why


def test_the_leeway_is_for_clocks_that_differ(path, issuer):
    verify(issuer.token(exp=int(time.time()) - 10, iat=int(time.time()) - 600), path)
    verify(issuer.token(nbf=int(time.time()) + 10), path)


def test_the_issuer_counts_where_it_is_named(path, issuer):
    rules = JwtRules(RULES.algorithms, AUDIENCE, "https://issuer", 30.0, 3600.0)
    verify(issuer.token(iss="https://issuer"), path, rules)
    assert reason(issuer.token(iss="https://another"), path, rules) == "token_issuer"
    assert reason(issuer.token(), path, rules) == "token_claim_missing"


def test_a_signature_of_somebody_else_is_refused(path):
    assert reason(Issuer().token(), path) == "token_signature"


@pytest.mark.parametrize("alg", ["none", "None", "NONE", "", None, ["RS256"], {"a": 1}])
def test_no_algorithm_is_no_token(path, alg):
    claims = {"sub": "trainer", "aud": AUDIENCE, "exp": int(time.time()) + 60}
    assert reason(unsigned({"alg": alg, "typ": "JWT"}, claims), path) in (
        "token_algorithm",
        "token_malformed",
    )


def test_the_public_key_is_no_secret(path, issuer):
    """The old trick: sign with HMAC, with the public key as the secret."""
    import hashlib
    import hmac

    head = unsigned(
        {"alg": "HS256", "typ": "JWT"}, {"sub": "trainer", "aud": AUDIENCE, "exp": time.time() + 60}
    )
    signature = hmac.new(issuer.public_pem, head[:-1].encode(), hashlib.sha256).digest()
    forged = head + base64.urlsafe_b64encode(signature).rstrip(b"=").decode()
    assert reason(forged, path) == "token_algorithm"
    hs = JwtRules(frozenset({"HS256"}), AUDIENCE, None, 30.0, 3600.0)
    with pytest.raises(ConfigError, match="expected a secret"):
        verify(forged, path, hs)


def test_an_algorithm_that_is_not_listed_is_refused(path, issuer):
    assert reason(issuer.token("RS512"), path) == "token_algorithm"


@pytest.mark.parametrize("token", ["a.b.c", "..", "e30.e30.e30", "é.b.c", "x" * 5000 + ".a.b"])
def test_rubbish_is_refused(path, token):
    assert reason(token, path) == "token_malformed" or token == "e30.e30.e30"


def test_a_tampered_token_is_refused_at_every_place(path, issuer):
    token = issuer.token()
    for at in range(0, len(token), 37):
        if token[at] != ".":
            bent = token[:at] + ("A" if token[at] != "A" else "B") + token[at + 1 :]
            with pytest.raises(Refused):
                verify(bent, path)


def test_other_kinds_of_keys_and_certificates(tmp_path, issuer):
    curve, edwards = ec.generate_private_key(ec.SECP256R1()), ed25519.Ed25519PrivateKey.generate()
    pem = b"".join(
        key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        for key in (curve, edwards)
    )
    path = tmp_path / "keys.pem"
    path.write_bytes(pem + issuer.public_pem)
    for key, algorithm in ((curve, "ES256"), (edwards, "EdDSA"), (issuer.private, "RS256")):
        verify(issuer.token(algorithm, key), path)
    weak = rsa.generate_private_key(65537, 1024)
    path.write_bytes(weak.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    with pytest.raises(ConfigError, match="RSA of at least 2048 bits"):
        keys.FileKeys(path, RULES.algorithms)
    path.write_bytes(issuer.private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    with pytest.raises(ConfigError, match="expected public keys.*got a block 'PRIVATE KEY'"):
        keys.FileKeys(path, RULES.algorithms)
    path.write_bytes(b"nothing")
    with pytest.raises(ConfigError, match="got 0 keys"):
        keys.FileKeys(path, RULES.algorithms)


def test_a_secret_signs_where_the_algorithms_are_hs(tmp_path, issuer):
    path, secret = tmp_path / "secret", b"s" * 32
    path.write_bytes(secret + b"\n")
    rules = JwtRules(frozenset({"HS256"}), AUDIENCE, None, 30.0, 3600.0)
    verify(issuer.token("HS256", secret), path, rules)
    assert reason(issuer.token("HS256", b"t" * 32), path, rules) == "token_signature"
    path.write_bytes(b"short")
    with pytest.raises(ConfigError, match="at least 32 bytes; got 5"):
        keys.FileKeys(path, rules.algorithms)


def jwks(*pairs):
    return {
        "keys": [
            {
                **json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(one.private.public_key())),
                "kid": kid,
                "use": "sig",
            }
            for kid, one in pairs
        ]
    }


def test_keys_of_a_jwks_go_by_their_kid_and_are_read_again(tmp_path, issuer):
    path, other = tmp_path / "jwks.json", Issuer()
    path.write_text(json.dumps(jwks(("a", issuer), ("b", other))))
    file = keys.FileKeys(path, RULES.algorithms)
    with ThreadPoolExecutor(1) as pool:
        jwts = Jwts(RULES, file, pool)

        def prove(token):
            return asyncio.run(jwts.prove(token))

        prove(issuer.token(headers={"kid": "a"}))
        prove(other.token(headers={"kid": "b"}))
        for one, kid, why in ((issuer, "b", "token_signature"), (issuer, "c", "token_key_unknown")):
            with pytest.raises(Refused) as refused:
                prove(one.token(headers={"kid": kid}))
            assert refused.value.reason == why
        replace(path, json.dumps(jwks(("b", other))).encode())
        file.files[0].current()
        with pytest.raises(Refused):
            prove(issuer.token(headers={"kid": "a"}))
        prove(other.token(headers={"kid": "b"}))


def test_a_jwks_lends_no_symmetric_key(tmp_path, issuer):
    path = tmp_path / "jwks.json"
    secret = {"kty": "oct", "k": base64.urlsafe_b64encode(b"s" * 32).decode(), "kid": "s", "alg": "HS256"}
    path.write_text(json.dumps({"keys": [secret]}))
    with pytest.raises(ConfigError, match="got 0 keys"):
        keys.FileKeys(path, RULES.algorithms)


@pytest.fixture
def endpoint():
    """A JWKS over HTTP on loopback: what it answers, and how often it was asked."""

    class Endpoint(http.server.BaseHTTPRequestHandler):
        document: dict | None = None
        url = ""
        asked = 0

        def do_GET(self):
            Endpoint.asked += 1
            self.send_response(200 if Endpoint.document else 500)
            self.end_headers()
            self.wfile.write(json.dumps(Endpoint.document).encode())

        def log_message(self, *args):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Endpoint) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        Endpoint.url = f"http://127.0.0.1:{server.server_port}/keys"
        yield Endpoint
        server.shutdown()
        thread.join()


def test_keys_of_a_url_are_fetched_when_needed_and_not_at_a_strangers_will(endpoint, issuer, monkeypatch):
    fetched = keys.UrlKeys(endpoint.url, RULES.algorithms)
    assert endpoint.asked == 0
    endpoint.document = jwks(("a", issuer))
    with ThreadPoolExecutor(1) as pool:
        jwts = Jwts(RULES, fetched, pool)
        asyncio.run(jwts.prove(issuer.token(headers={"kid": "a"})))
        for number in range(20):
            with pytest.raises(Refused, match="token_key_unknown"):
                asyncio.run(jwts.prove(issuer.token(headers={"kid": f"made-up-{number}"})))
        assert endpoint.asked == 1
        # Later, with the issuer away: what was fetched stays in force.
        endpoint.document = None
        monkeypatch.setattr(keys, "_COOLDOWN_SECONDS", 0.0)
        monkeypatch.setattr(keys, "_FRESH_SECONDS", 0.0)
        asyncio.run(jwts.prove(issuer.token(headers={"kid": "a"})))
        assert endpoint.asked == 2
        other = Issuer()
        endpoint.document = jwks(("b", other))
        asyncio.run(jwts.prove(other.token(headers={"kid": "b"})))


def test_a_made_token_goes_with_its_hash_and_looks_like_no_jwt():
    token, digest = tokens.made()
    assert asyncio.run(tokens.prove(token, None)) == Hashed(digest)
    assert "." not in token
    assert len({tokens.made()[0] for _ in range(100)}) == 100


@pytest.mark.parametrize(
    "values",
    [
        ["Basic abc"],
        ["Bearer"],
        ["Bearer "],
        [""],
        ["abc"],
        ["Bearer a", "Bearer b"],
        [b"Bearer a"],
        ["Bearer \xe9"],
    ],
)
def test_another_header_than_one_bearer_token_is_refused(values):
    with pytest.raises(Refused, match="header_malformed"):
        tokens.from_header(values)


def test_the_header_may_be_absent_and_its_scheme_of_any_case():
    assert tokens.from_header([]) is None
    assert tokens.from_header(["bearer  abc"]) == "abc"


class Slow:
    """Keys that take their time, and are away or not."""

    @property
    def files(self):
        return []

    def __init__(self, *found):
        self.found, self.away, self.refreshed = list(found), False, 0
        self.go_on = threading.Event()

    def find(self, kid, algorithm):
        return self.found

    def due(self, found):
        return not self.go_on.is_set()

    def refresh(self):
        self.refreshed += 1
        assert self.go_on.wait(20)


def test_strangers_take_one_thread_together_while_keys_are_fetched(issuer):
    """Else whoever makes tokens up keeps every thread of calls waiting for an issuer that does not answer."""
    slow = Slow()

    async def strangers(jwts, pool):
        asked = [asyncio.create_task(jwts.prove(issuer.token())) for _ in range(8)]
        while not slow.refreshed:
            await asyncio.sleep(0.01)
        other = asyncio.get_running_loop().run_in_executor(pool, lambda: "answered")
        assert await asyncio.wait_for(other, 10) == "answered"
        slow.go_on.set()
        return await asyncio.gather(*asked, return_exceptions=True)

    with ThreadPoolExecutor(2) as pool:
        told = asyncio.run(strangers(Jwts(RULES, slow, pool), pool))
    assert slow.refreshed == 1
    assert {str(one) for one in told} == {"token_key_unknown"}


def test_who_is_known_does_not_wait_for_an_issuer_that_is_away(path, issuer):
    known = keys.FileKeys(path, RULES.algorithms).find(None, "RS256")
    slow = Slow(*known)
    slow.away = True

    async def proven(jwts):
        try:
            return await asyncio.wait_for(jwts.prove(issuer.token()), 10)
        finally:
            slow.go_on.set()

    with ThreadPoolExecutor(1) as pool:
        assert asyncio.run(proven(Jwts(RULES, slow, pool))).claims["sub"] == "trainer"


def test_a_stranger_waits_for_keys_that_are_being_fetched_no_longer_than_it_is_patient(issuer, monkeypatch):
    """An issuer that answers byte by byte is never late for its connection's timeout."""
    monkeypatch.setattr(tokens, "_PATIENCE_SECONDS", 0.1)
    slow = Slow()
    with ThreadPoolExecutor(1) as pool:
        began = time.monotonic()

        async def prove():
            try:
                await Jwts(RULES, slow, pool).prove(issuer.token())
            finally:
                slow.go_on.set()

        with pytest.raises(Refused, match="token_key_unknown"):
            asyncio.run(prove())
        assert time.monotonic() - began < 10


def test_keys_are_not_fetched_from_where_their_url_leads_on_to(endpoint, issuer):
    """That may be plaintext, where whoever stands in between could put keys of their own."""
    endpoint.document = jwks(("a", issuer))

    class Elsewhere(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(302)
            self.send_header("Location", endpoint.url)
            self.end_headers()

        def log_message(self, *args):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Elsewhere) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        fetched = keys.UrlKeys(f"http://127.0.0.1:{server.server_port}/keys", RULES.algorithms)
        fetched.refresh()
        thread.join()
    assert (fetched.away, endpoint.asked) == (True, 0)


@pytest.mark.parametrize(
    "answer", [b"", b"HTTP/1.0 200 OK\r\nContent-Length: 90\r\n\r\n{", b"no HTTP at all\r\n\r\n"]
)
def test_an_issuer_that_answers_nonsense_is_as_one_that_is_away(issuer, answer, caplog):
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve():
            connection, _ = listener.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/keys"
        fetched = keys.UrlKeys(url, RULES.algorithms)
        with ThreadPoolExecutor(1) as pool, pytest.raises(Refused, match="token_key_unknown"):
            asyncio.run(Jwts(RULES, fetched, pool).prove(issuer.token()))
        thread.join()
    assert fetched.away
    assert "jwt_keys_not_fetched" in caplog.text


def test_keys_that_are_no_keys_are_left_out(issuer):
    document = jwks(("a", issuer))
    good = dict(document["keys"][0])
    document["keys"] += [{**good, "alg": ["RS256"]}, {**good, "n": 5}, {**good, "e": "AA", "kid": []}]
    assert keys.from_jwks(document, RULES.algorithms)[0].kid == "a"
