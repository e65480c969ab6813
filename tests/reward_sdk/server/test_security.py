"""What a server refuses, and how."""

import base64
import contextlib
import io
import json
import os
import socket
import zlib

import httpx
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from support.serving import Server

from reward_sdk.cli import main
from reward_sdk.errors import ScoringError
from reward_sdk.images import RefusedError, is_lateral, open_image
from reward_sdk.server.security import open_wire_image
from reward_sdk.types import ImageRef
from reward_sdk.wire import MAX_BODY, MAX_IMAGE, MAX_SAMPLES, MAX_TEXT, ImageBytes, ImageFile

FORMAT = {"format": {}}
BODY = {"samples": [{"response": "<report> Clear. </report>"}]}
JSON = {"Content-Type": "application/json"}
TOKEN = "correct-horse"


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A server without a token."""
    with Server(tmp_path_factory.mktemp("plain"), FORMAT) as server:
        yield server


@pytest.fixture(scope="module")
def guarded(tmp_path_factory):
    """A server with a token, from a file."""
    folder = tmp_path_factory.mktemp("guarded")
    (folder / "token").write_text(f"{TOKEN}\n")
    with Server(folder, FORMAT, "--token-file", str(folder / "token")) as server:
        yield server


@pytest.mark.parametrize("path", ["/v1/rewards", "/metrics", "/openapi.json", "/", "/nowhere"])
def test_without_the_token_nothing_is_shown(guarded, path):
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": TOKEN},
                    {"Authorization": "Basic !"}, {"Authorization": "Bearer"}):  # fmt: skip
        assert httpx.get(guarded.url + path, headers=headers).status_code == 401


@pytest.mark.parametrize("path", ["/v1/score", "/get_reward", "/verify", "/try"])
def test_without_the_token_nothing_is_scored(guarded, path):
    assert guarded.post(path, BODY).status_code == 401


def test_a_401_says_what_is_needed_and_how_a_browser_asks_for_it(guarded):
    answer = httpx.get(f"{guarded.url}/")
    assert "REWARD_SDK_TOKEN" in answer.json()["detail"]
    assert answer.headers["www-authenticate"].startswith("Basic ")


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "localhost.evil.example",
                                  "[::1", "127.0.0.1.evil.example"])  # fmt: skip
def test_a_name_that_is_none_of_the_servers_is_not_answered(plain, host):
    answer = httpx.get(f"{plain.url}/healthz", headers={"Host": host})
    assert answer.status_code == 421
    assert "--allow-host" in answer.json()["detail"]


@pytest.mark.parametrize(
    "host",
    ["localhost", "LOCALHOST:8000", "127.0.0.1", "[::1]:80", "10.0.0.7", socket.gethostname()],
)
def test_addresses_and_the_machines_own_names_are_answered(plain, host):
    assert httpx.get(f"{plain.url}/healthz", headers={"Host": host}).status_code == 200


def test_a_name_can_be_allowed(tmp_path):
    with Server(tmp_path, FORMAT, "--allow-host", "Rewards.Example") as server:
        headers = {"Host": "rewards.example:8000"}
        assert httpx.get(f"{server.url}/healthz", headers=headers).status_code == 200


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://127.0.0.1:1"])
@pytest.mark.parametrize("path", ["/try", "/v1/score", "/get_reward"])
def test_what_the_page_of_another_site_sends_is_not_scored(plain, origin, path):
    answer = httpx.post(plain.url + path, data={"response": "x"}, headers={"Origin": origin})
    assert answer.status_code == 403
    assert "another site" in answer.json()["detail"]


def test_the_form_of_the_page_itself_is_scored(plain):
    form = {"response": "Clear."}
    answer = httpx.post(f"{plain.url}/try", data=form, headers={"Origin": plain.url})
    assert answer.status_code == 200


def test_a_probe_without_the_token_is_not_told_why_a_reward_is_not_ready(tmp_path, plugin):
    environment = {**plugin, "WARM": str(tmp_path / "warm"), "REWARD_SDK_TOKEN": TOKEN}
    with Server(tmp_path, {"cold": {}}, environment=environment, wait=False) as server:
        known = {"Authorization": f"Bearer {TOKEN}"}

        def why(headers):
            return httpx.get(f"{server.url}/readyz", headers=headers).json()["waiting_for"]["cold"]

        Server.until(lambda: "still cold" in why(known))
        assert why({}) == why({"Authorization": "Bearer x"}) == "see the server's log"


def test_the_token_opens(guarded):
    headers = {"Authorization": f"Bearer {TOKEN}"}
    assert guarded.post("/v1/score", BODY, headers=headers).status_code == 200
    assert httpx.get(f"{guarded.url}/", auth=("anyone", TOKEN)).status_code == 200


@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
def test_probes_need_no_token(guarded, path):
    assert httpx.get(guarded.url + path).status_code == 200


def serve(tmp_path, *options, env=None):
    path = tmp_path / "set.yaml"
    path.write_text(json.dumps({"rewards": FORMAT}))
    return CliRunner().invoke(main, ["serve", "--set", str(path), *options], env=env)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "node1"])
def test_other_machines_are_not_served_without_a_token(tmp_path, host):
    done = serve(tmp_path, "--host", host)
    assert done.exit_code == 2
    assert "--insecure" in done.output


@pytest.mark.parametrize("text", ["", " \n", "two words", "ümlaut"])
def test_a_token_that_no_header_can_carry_is_refused(tmp_path, text):
    (tmp_path / "token").write_text(text)
    done = serve(tmp_path, "--token-file", str(tmp_path / "token"))
    assert done.exit_code == 2
    assert "a token is one word" in done.output


def test_a_missing_token_file_or_image_folder_is_named(tmp_path):
    for option in ("--token-file", "--images"):
        done = serve(tmp_path, option, str(tmp_path / "missing"))
        assert done.exit_code == 2
        assert "missing" in done.output


def test_a_body_that_is_too_large_is_refused_by_its_announced_length(plain):
    with socket.create_connection(("127.0.0.1", int(plain.url.rsplit(":", 1)[1]))) as connection:
        head = f"POST /v1/score HTTP/1.1\r\nHost: [::1]\r\nContent-Length: {MAX_BODY + 1}\r\n\r\n"
        connection.sendall(head.encode() + b"{")
        assert b" 413 " in connection.recv(100)


def test_a_chunked_body_that_is_too_large_is_refused(plain):
    def chunks():
        for _ in range(MAX_BODY // (1 << 20) + 2):
            yield b" " * (1 << 20)

    with contextlib.suppress(httpx.WriteError):  # it has answered and closed before all is sent
        answer = httpx.post(f"{plain.url}/v1/score", content=chunks(), headers=JSON)
        assert answer.status_code == 413
    assert httpx.get(f"{plain.url}/healthz").status_code == 200


@pytest.mark.parametrize(
    ("body", "place"),
    [
        ({"samples": []}, "body.samples: "),
        ({"samples": BODY["samples"] * (MAX_SAMPLES + 1)}, "body.samples: "),
        ({"samples": [{"response": "x" * (MAX_TEXT + 1)}]}, "body.samples.0.response: "),
        ({"samples": [{"response": "x", "reference": 3}]}, "body.samples.0.reference: "),
        ({"samples": [{"response": "x", "refrence": "y"}]}, "body.samples.0.refrence: "),
        ({"samples": [{"response": "x", "image": "x.png"}]}, "body.samples.0.image"),
        ({"samples": [{"response": "x", "image": {"url": "http://x/y.png"}}]}, "image"),
        ({"samples": [{"response": "\ud800"}]}, "body.samples.0.response: "),
        ({"samples": [{"response": "x"}], "step": 0}, "body.step: "),
        ({"samples": [{"response": "x"}], "step": 1.5}, "body.step: "),
        ({"samples": [{"response": "x"}], "request_id": ""}, "body.request_id: "),
        ([], "body: "),
    ],
)
def test_a_request_that_is_not_as_it_must_be_says_where(plain, body, place):
    answer = httpx.post(f"{plain.url}/v1/score", content=json.dumps(body), headers=JSON)
    assert answer.status_code == 422
    assert place in answer.json()["detail"]
    assert len(answer.text) < 2000


@pytest.mark.parametrize("path", ["/v1/score", "/get_reward", "/verify"])
@pytest.mark.parametrize("text", [b"", b"{", b"\xff\xfe", b'{"a": NaN', b"[" * 100_000, b"\x00"])
def test_what_is_no_json_is_refused_and_not_repeated(plain, path, text):
    answer = httpx.post(plain.url + path, content=text, headers=JSON)
    assert answer.status_code in (400, 422)
    assert len(answer.text) < 500


def test_a_body_of_another_kind_is_refused_with_what_is_needed(plain):
    answer = httpx.post(f"{plain.url}/v1/score", data={"samples": "x"})  # as curl -d sends it
    assert answer.status_code == 415
    assert "application/json" in answer.json()["detail"]


def png(width, height):
    """A PNG that claims a size and holds nearly nothing."""

    def chunk(kind, data):
        return (
            len(data).to_bytes(4, "big") + kind + data
            + zlib.crc32(kind + data).to_bytes(4, "big")
        )  # fmt: skip

    size = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    header = chunk(b"IHDR", size + b"\x08\x00\x00\x00\x00")
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 100))


@pytest.mark.parametrize(("width", "height"), [(10_000, 10_000), (60_000, 60_000)])
def test_an_image_of_too_many_pixels_is_refused_before_it_is_decoded(served, width, height):
    image = {"base64": base64.b64encode(png(width, height)).decode()}
    body = {"samples": [{"response": "x", "image": image}], "step": 1}
    answer = served.server.post("/v1/score", body)
    assert answer.status_code == 422
    assert answer.json()["detail"].startswith("samples.0: image")


def test_an_image_of_too_many_bytes_is_refused(tmp_path):
    with (tmp_path / "big.png").open("wb") as file:
        file.truncate(MAX_IMAGE + 1)
    with pytest.raises(RefusedError, match="more than"):
        open_wire_image(ImageFile(path="big.png"), [tmp_path])


def test_an_image_that_is_no_image_fails_its_own_sample_alone(served):
    broken = {"base64": base64.b64encode(b"no image").decode()}
    good = {"path": str(served.images / "film0.png")}
    response = {"response": "<report> No effusion. </report>"}
    body = {"samples": [response | {"image": i} for i in (broken, good)], "step": 1}
    one, other = served.server.post("/v1/score", body).json()["scores"]
    assert one["parts"]["image_text"]["status"] == "failed"
    assert one["logs"]["image_text/failed"] == 1.0
    assert one["total"] is not None
    assert other["parts"]["image_text"]["status"] == "ok"


@pytest.fixture
def folders(tmp_path):
    """An image folder with a film, a secret outside of it, and ways that seem to lead there."""
    inside = tmp_path / "films"
    (inside / "deep").mkdir(parents=True)
    Image.new("L", (8, 8)).save(inside / "film.png")
    Image.new("L", (8, 8)).save(tmp_path / "secret.png")
    (inside / "link.png").symlink_to(tmp_path / "secret.png")
    (inside / "up").symlink_to(tmp_path)
    (inside / "deep/again.png").symlink_to(inside / "film.png")
    (inside / "circle").symlink_to(inside / "circle")
    os.mkfifo(inside / "pipe.png")
    (tmp_path / "films-of-others").mkdir()
    Image.new("L", (8, 8)).save(tmp_path / "films-of-others/film.png")
    return inside


@pytest.mark.parametrize(
    "path",
    ["../secret.png", "deep/../../secret.png", "{root}/secret.png", "link.png", "up/secret.png",
     "up/films/../secret.png", "{root}/films-of-others/film.png", "../films-of-others/film.png",
     "/etc/passwd", "/proc/self/environ", "/dev/zero", "a\0b", "..", "/"],
)  # fmt: skip
def test_nothing_outside_of_the_image_folders_is_opened(folders, path):
    path = path.replace("{root}", str(folders.parent))
    with pytest.raises(RefusedError, match="not inside of the server's image folders"):
        open_wire_image(ImageFile(path=path), [folders])


@pytest.mark.parametrize("path", ["film.png", "deep/../film.png", "{root}/films/film.png",
                                  "deep/again.png", "up/films/film.png"])  # fmt: skip
def test_what_lies_inside_is_read(folders, path):
    path = path.replace("{root}", str(folders.parent))
    ref = open_wire_image(ImageFile(path=path, view="PA"), [folders])
    assert (ref.path, ref.view) == (str(folders / "film.png"), "PA")
    with ref.open() as file:
        assert file.read() == (folders / "film.png").read_bytes()


@pytest.mark.parametrize("path", ["gone.png", "pipe.png", "deep", "x" * 300])
def test_what_is_no_file_is_left_for_the_reward_to_fail_on(folders, path):
    assert open_wire_image(ImageFile(path=path), [folders]).data == b""


def test_a_circle_of_links_leads_nowhere(folders):
    with pytest.raises(RefusedError, match="not inside"):
        open_wire_image(ImageFile(path="circle"), [folders])


def test_without_image_folders_no_path_is_read(folders):
    with pytest.raises(RefusedError, match="--images"):
        open_wire_image(ImageFile(path=str(folders / "film.png")), [])


def test_a_file_of_another_size_than_the_clients_is_refused(folders):
    with pytest.raises(RefusedError, match="not the same file"):
        open_wire_image(ImageFile(path="film.png", size=1), [folders])


def exchange_for_a_link(folders):
    (folders / "film.png").unlink()
    (folders / "film.png").symlink_to(folders.parent / "secret.png")


def exchange_its_folder_for_a_link(folders):
    folders.rename(folders.parent / "moved")
    other = folders.parent / "other"
    other.mkdir()
    Image.new("L", (9, 9)).save(other / "film.png")
    folders.symlink_to(other)


@pytest.mark.parametrize("exchange", [exchange_for_a_link, exchange_its_folder_for_a_link])
def test_a_file_that_is_exchanged_after_it_was_named_is_not_read(folders, exchange):
    ref = open_wire_image(ImageFile(path="film.png"), [folders])
    exchange(folders)
    with pytest.raises(ScoringError, match=r"replaced while it was opened|symbolic links"):
        open_image(ref)


@pytest.mark.parametrize("exchange", [exchange_for_a_link, exchange_its_folder_for_a_link])
def test_a_file_that_is_exchanged_while_it_is_opened_is_not_read(folders, exchange, monkeypatch):
    real_open = os.open

    def exchanging(path, flags, *rest, **options):
        if str(path).endswith("film.png"):
            monkeypatch.setattr(os, "open", real_open)
            exchange(folders)
        return real_open(path, flags, *rest, **options)

    monkeypatch.setattr(os, "open", exchanging)
    with pytest.raises(ScoringError, match=r"replaced while it was opened|symbolic links"):
        open_image(open_wire_image(ImageFile(path="film.png"), [folders]))


@given(st.binary(max_size=200))
def test_base64_is_read_back(data):
    encoded = base64.b64encode(data).decode()
    assert open_wire_image(ImageBytes(base64=encoded), []).data == data


@given(
    st.text(
        st.characters(exclude_characters="+/=", exclude_categories=["L", "N", "Cs"]), min_size=1
    )
)
def test_what_is_no_base64_is_refused(text):
    with pytest.raises(RefusedError, match="no base64"):
        open_wire_image(ImageBytes(base64=text), [])


def test_no_report_is_ever_logged(tmp_path, plugin):
    rewards = {"moody": {}, "rouge_l": {}}
    with Server(tmp_path, rewards, "--verbose", environment=plugin) as server:
        for text in ("SECRET poison", "<report> SECRET </report>"):
            body = {"samples": [{"response": text, "reference": "SECRET"}]}
            assert server.post("/v1/score", body).status_code == 200
            labels = {"query": [f"q {text}"], "prompts": ["q"], "labels": ["{SECRET"]}
            assert server.post("/get_reward", labels).status_code == 200
        server.post("/v1/score", {"samples": [{"response": "SECRET", "SECRET": 1}]})
        httpx.post(f"{server.url}/try", data={"response": "SECRET"})
        Server.until(lambda: "/v1/score 422" in server.log())
    assert "SECRET" not in server.log()


@pytest.mark.parametrize("start", [b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"])
def test_formats_that_start_other_programs_are_not_read(start):
    with pytest.raises(ScoringError, match="no image in a known format"):
        open_image(ImageRef(data=start + b"showpage\n"))


def test_a_deflated_dicom_file_is_not_unpacked():
    meta = b"\0" * 128 + b"DICM" + b"\x02\0\x10\0UI\x16\x001.2.840.10008.1.2.1.99\0"
    ref = ImageRef(data=meta + zlib.compress(b"\0" * 1_000_000)[2:-4])
    for read in (open_image, is_lateral):
        with pytest.raises(ScoringError, match="deflated DICOM"):
            read(ref)


def test_an_image_in_memory_can_be_a_dicom_file():
    pydicom = pytest.importorskip("pydicom")
    from pydicom.dataset import FileDataset, FileMetaDataset

    meta = FileMetaDataset()
    meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = meta.MediaStorageSOPInstanceUID = "1.2.3"
    data = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
    data.Rows = data.Columns = 4
    data.BitsAllocated = data.BitsStored = 8
    data.HighBit, data.SamplesPerPixel, data.PixelRepresentation = 7, 1, 0
    data.PhotometricInterpretation = "MONOCHROME2"
    data.ViewPosition = "LL"
    data.PixelData = bytes(range(16))
    file = io.BytesIO()
    data.save_as(file, enforce_file_format=True)
    encoded = base64.b64encode(file.getvalue()).decode()
    ref = open_wire_image(ImageBytes(base64=encoded), [])
    assert is_lateral(ref)
    assert open_image(ref).size == (4, 4)
