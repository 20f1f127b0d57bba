"""The configuration: what is read, and what a person is told when it is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from broker import ConfigurationError, Retry
from broker.settings import Settings, masked


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Load a configuration of this text, in an otherwise empty folder."""
    monkeypatch.chdir(tmp_path)

    def loader(text: str | None = None) -> Settings:
        if text is None:
            return Settings.load()
        (tmp_path / "config.toml").write_text(text)
        return Settings.load()

    return loader


def refused(load, text: str | None) -> str:
    with pytest.raises(ConfigurationError) as caught:
        load(text)
    return str(caught.value)


def test_without_any_configuration_it_is_a_local_rabbitmq(load) -> None:
    settings = load()
    assert settings.urls == ["amqp://guest:guest@127.0.0.1:5672/"]
    assert settings.services.paths == ["services"]
    assert settings.callbacks.queue == "callbacks"
    assert (settings.worker.processes, settings.worker.grace, settings.worker.max_body) == (1, 30.0, 16_777_216)
    assert settings.file is None


def test_the_file_is_read_and_the_environment_comes_first(load, monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("ACKBACK_WORKER__PROCESSES", "4")
    monkeypatch.setenv("ACKBACK_BROKER__URL", "amqp://other/")
    monkeypatch.setenv("ACKBACK_SERVICE__PING__TIMEOUT", "7")
    settings = load(
        """
        [broker]
        url = ["amqp://a/", "amqp://b/"]
        [worker]
        processes = 2
        grace = 5
        [defaults]
        concurrency = 9
        timeout = 0
        [service."orders.price"]
        retry = { attempts = 2, first = 0.5 }
        callback = ["x", "y"]
        """
    )
    assert settings.urls == ["amqp://other/"]
    assert (settings.worker.processes, settings.worker.grace) == (4, 5.0)
    assert settings.defaults.over({"timeout": 1.0}) == {"concurrency": 9, "timeout": None}
    own = Retry(first=9, on=OSError)
    assert settings.service["orders.price"].over({"retry": own, "outbox": True}) == {
        "retry": Retry(attempts=2, first=0.5, on=OSError),
        "callback": ["x", "y"],
        "outbox": True,
    }
    assert settings.service["ping"].timeout == 7
    assert settings.file == tmp_path / "config.toml"


def test_several_urls_from_the_environment(load, monkeypatch) -> None:
    monkeypatch.setenv("ACKBACK_BROKER__URL", '["amqp://a/", "amqps://b/"]')
    assert load().urls == ["amqp://a/", "amqps://b/"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[worker]\nproceses = 2", ["unknown key worker.proceses", "did you mean worker.processes?"]),
        ("[brokr]\nurl = 'amqp://a/'", ["unknown key brokr", "did you mean broker?"]),
        (
            '[service."a.b"]\nconcurency = 2',
            ['unknown key service."a.b".concurency', 'did you mean service."a.b".concurrency?'],
        ),
        ("[service.x.retry]\nattemts = 2", ["unknown key service.x.retry.attemts", "attempts?"]),
        ("[broker]\nxyz = 2", ["unknown key broker.xyz", "known here: url, transport"]),
        ("[worker]\nprocesses = 0", ["worker.processes", "greater than 0"]),
        ("[worker]\nprocesses = 'many'", ["worker.processes", "valid integer"]),
        ("[broker]\ntransport = 'carrier-pigeon'", ["broker.transport", "'auto'"]),
        ("[service.x.retry]\nattempts = 0", ["service.x.retry", "attempts must be 1 or more"]),
        ("[callbacks]\nqueue = 'no spaces'", ["callbacks.queue", "' ' is not allowed"]),
        ("[worker]\nprocesses = ]", ["is not valid TOML", "line 2"]),
        ("[broker]\nurl = 'http://a/'", ["broker.url", "the scheme 'http'", "use amqp:// or, for TLS, amqps://"]),
        ("[broker]\nurl = 'amqp://'", ["names no host"]),
        ("[broker]\nurl = 'amqp://a:port/'", ["host or port cannot be read"]),
        ("[broker]\nurl = 'amqp://u:hunter2@/x'", ["'amqp://u:***@/x' names no host"]),
        ("[broker]\nurl = []", ["broker.url", "at least 1 item"]),
        ("[broker]\nurl = ['memory://', 'amqp://a/']", ["memory:// stands alone"]),
    ],
)
def test_what_is_wrong_is_named_with_what_to_do(load, text: str, words: list[str]) -> None:
    told = refused(load, text)
    assert "config.toml" in told
    for word in words:
        assert word in told
    assert "hunter2" not in told


def test_every_mistake_is_told_at_once(load) -> None:
    told = refused(load, "[worker]\nproceses = 2\ngrace = -1")
    assert len(told.splitlines()) == 2


def test_a_missing_file_is_named(load) -> None:
    with pytest.raises(ConfigurationError, match=r"there is no configuration file nowhere\.toml"):
        Settings.load("nowhere.toml")
    with pytest.raises(ConfigurationError, match="is a folder"):
        Settings.load("/")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("ACKBACK_BROKER__URI", "did you mean ACKBACK_BROKER__URL?"),
        ("ACKBACK_WORKERS", "unknown variable ACKBACK_WORKERS"),
        ("ACKBACK_LOG__FORMATT", "did you mean ACKBACK_LOG__FORMAT?"),
    ],
)
def test_unknown_variables_are_errors_too(load, monkeypatch, name: str, words: str) -> None:
    monkeypatch.setenv(name, "x")
    assert words in refused(load, None)


def test_a_wrong_value_of_a_variable_names_the_variable(load, monkeypatch) -> None:
    monkeypatch.setenv("ACKBACK_WORKER__PROCESSES", "many")
    assert "the environment variable ACKBACK_WORKER__PROCESSES: worker.processes: Input should be" in refused(
        load, "[worker]\ngrace = 1"
    )


def test_passwords_are_never_shown() -> None:
    assert masked("amqp://user:hunter2@host:5671/v?keyfile=secret") == "amqp://user:***@host:5671/v"
    assert masked("amqp://user@host/") == "amqp://user@host/"
    assert "hunter2" not in masked("amqp://u:hunter2@[bad/")
    settings = Settings.model_validate({"broker": {"url": "amqp://u:hunter2@host/"}})
    assert "hunter2" not in repr(settings) + str(settings) + settings.model_dump_json()
    assert settings.urls == ["amqp://u:hunter2@host/"]


def test_echo_is_said_of_one_service(load) -> None:
    assert load('[service."legacy.rpc"]\necho = false').silent == {"legacy.rpc"}
    assert 'echo is said of one service: [service."NAME"] echo = …' in refused(load, "[defaults]\necho = false")
