"""The page and the real server, with a tiny guard in a worker: what is read is the score of what was typed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from serving import Running, opening, running
from test_serve_page import Reader, shown

TEXT = "Hurt the dog"
POLICIES = """\
[policy.all]
thresholds = { default = 0.0 }
[policy.none]
thresholds = { default = 1.0 }
review = { default = 0.0 }
"""


@pytest.fixture(scope="module")
def server(tiny_model: Path, tiny_profile: Path, tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("policies")
    (folder / "policies.toml").write_text(POLICIES, encoding="utf-8")
    with running(opening(tiny_model, tiny_profile, "tiny"), policy_file=folder / "policies.toml") as found:
        yield found


@pytest.fixture
def reader(browser: Any, server: Running) -> Reader:
    return Reader(browser, f"{server.url}/")


def test_the_result_on_the_page_is_the_score_that_the_server_gives(reader: Reader, server: Running):
    row = server.ask("/v1/score", {"text": TEXT}).json
    reader.opens()
    reader.waits_for("#about", "marginal")
    reader.types(TEXT)
    reader.sends()
    reader.waits_for("#verdict", "P(unsafe)")
    flagged = [f"{code} {name}" for code, name in (("S1", "Violence"), ("S10", "Häme"), ("S2", "Theft"))]
    for label, p in {"unsafe": row["unsafe"], **row["category_scores"]}.items():
        low, high = row["bounds"][label]
        assert reader.text(f'[data-label="{label}"] .value') == f"{shown(p)}{shown(low)} … {shown(high)}"
    verdict = reader.text("#verdict")
    assert verdict.startswith("Flagged" if row["flagged"] else "Not flagged")
    assert [name for name in flagged if name in verdict] == [n for n in flagged if n.split()[0] in row["categories"]]
    assert row["model_sha256"] in reader.text("#facts")
    assert len(reader.all("#tree li")) > 1
    assert reader.driver.get_log("browser") == []


def test_a_policy_of_the_server_is_chosen_and_shown(reader: Reader):
    reader.opens()
    reader.waits_for("#model", "tiny@none")
    reader.types(TEXT)
    for name, verdict in (("tiny@all", "Flagged: S1 Violence, S10 Häme, S2 Theft"), ("tiny@none", "For review")):
        reader.by(f'#model option[value="{name}"]').click()
        reader.sends()
        reader.waits_for("#verdict", verdict)


def test_a_conversation_is_judged_by_its_last_turn(reader: Reader, server: Running):
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": TEXT}]
    row = server.ask("/v1/score", {"messages": turns}).json
    reader.opens()
    reader.types(f"user: Hi\nassistant: {TEXT}", "chat")
    reader.sends()
    reader.waits_for("#verdict", f"P(unsafe) {shown(row['unsafe'])}")


def test_an_error_of_the_server_is_read_on_the_page(reader: Reader):
    reader.opens()
    reader.driver.execute_script("document.getElementById('input').value = 'word '.repeat(3000)")
    reader.sends()
    reader.waits_for("#error", "tokens")
    assert not reader.by("#result").is_displayed()


def test_a_server_with_keys_serves_the_page_and_asks_for_one(
    browser: Any, tiny_model: Path, tiny_profile: Path, tmp_path: Path
):
    keys = tmp_path / "keys.txt"
    keys.write_text("page 0123456789abcdef0123456789abcdef\n", encoding="utf-8")
    with running(opening(tiny_model, tiny_profile, "tiny"), api_key_file=keys) as server:
        reader = Reader(browser, f"{server.url}/")
        reader.opens()
        reader.waits_for("#error", "key")
        reader.by("#key").send_keys("0123456789abcdef0123456789abcdef\t")
        reader.waits_for("#about", "marginal")
        reader.types(TEXT)
        reader.sends()
        reader.waits_for("#verdict", "P(unsafe)")
        assert "0123456789abcdef" not in "".join(server.lines)
        assert TEXT not in "".join(server.lines)
