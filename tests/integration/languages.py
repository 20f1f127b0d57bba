"""Programs in other languages, and what runs them. As root on Debian what is missing is installed from its packages; where it cannot be had,
the summary says what was not tried."""

from __future__ import annotations

import os
import signal
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from tests.conftest import USED, install_or_skip

CLIENTS = Path(__file__).with_name("clients")
JARS = ":".join(f"/usr/share/java/{name}.jar" for name in ("amqp-client", "slf4j-api", "slf4j-nop"))
PATIENCE = 60.0


@dataclass(frozen=True)
class Language:
    """`there` says which version it is, or fails; `run_file` runs the source file that comes after it, from a shell.

    The client is a file among CLIENTS, or else the protocol document's example.
    """

    packages: str
    there: str
    run_file: str
    environment: dict[str, str] = field(default_factory=dict)
    client: str | None = None
    server: str = ""

    def command(self, source: Path, folder: Path) -> tuple[list[str], dict[str, str]]:
        """What runs a program, and in which environment, once everything that it needs is there."""
        if self._version() is None:
            what_to_do = f"install {self.packages} (names of Debian's packages)"
            install_or_skip(f"client {self.packages}", self.packages, what_to_do)
        version = self._version()
        assert version is not None
        USED[f"client {self.packages}"] = version
        return ["sh", "-c", f'{self.run_file} "$0"', str(source)], {**self.environment, "HOME": str(folder)}

    def run(self, source: Path, folder: Path, url: str) -> str:
        """What a client's program prints. Several of them take a URL's last slash for an empty virtual host."""
        command, environment = self.command(source, folder)
        with subprocess.Popen(
            command,
            cwd=folder,
            env=environment | {"PATH": os.environ["PATH"], "AMQP_URL": url.removesuffix("/")},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            process_group=0,
        ) as process:
            try:
                output, _ = process.communicate(timeout=PATIENCE)
            finally:
                if process.returncode is None:  # a shell's children outlive it
                    os.killpg(process.pid, signal.SIGKILL)
        assert process.returncode == 0, output
        return output

    def _version(self) -> str | None:
        done = subprocess.run(["sh", "-c", self.there], capture_output=True, text=True)
        return done.stdout.partition("\n")[0] if done.returncode == 0 else None


LANGUAGES = {
    "java": Language(
        "default-jdk-headless librabbitmq-client-java libslf4j-java",
        "javac -version && ls /usr/share/java/amqp-client.jar /usr/share/java/slf4j-nop.jar",
        f"java -cp {JARS}",
        server="Server.java",
    ),
    "go": Language(
        "golang-go golang-github-rabbitmq-amqp091-go-dev",
        "go version && ls /usr/share/gocode/src/github.com/rabbitmq/amqp091-go",
        "go run",
        {"GOPATH": "/usr/share/gocode", "GO111MODULE": "off"},
        server="server.go",
    ),
    "ruby": Language("ruby-bunny", "ruby -rbunny -e 'puts Bunny::VERSION'", "ruby", client="client.rb"),
    "php": Language(
        "php-cli php-amqplib",
        "php -r 'require \"PhpAmqpLib/autoload.php\"; echo PHP_VERSION;'",
        "php",
        client="client.php",
    ),
    "c": Language(
        "gcc libc6-dev librabbitmq-dev",
        "gcc --version && ls /usr/include/amqp_tcp_socket.h",
        'compiled() { gcc -o client "$1" -lrabbitmq && ./client; }; compiled',
        client="client.c",
    ),
}
