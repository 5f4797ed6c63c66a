"""A DVC remote over HTTP, as a process of its own: FOLDER PORT SECONDS, which each upload takes."""

import functools
import shutil
import sys
import time
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class Remote(SimpleHTTPRequestHandler):
    def __init__(self, *arguments: object, seconds: float, **named: object) -> None:
        self.seconds = seconds
        super().__init__(*arguments, **named)  # type: ignore[arg-type]

    def do_POST(self) -> None:
        path = Path(self.translate_path(self.path))
        path.parent.mkdir(parents=True, exist_ok=True)
        time.sleep(self.seconds)
        part = path.with_name(f"{path.name}.part")
        with part.open("wb") as file:
            if self.headers.get("Transfer-Encoding") == "chunked":
                while size := int(self.rfile.readline(), 16):
                    file.write(self.rfile.read(size))
                    self.rfile.readline()
                self.rfile.readline()
            else:
                file.write(self.rfile.read(int(self.headers["Content-Length"])))
        shutil.move(part, path)
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()


if __name__ == "__main__":
    handler = functools.partial(Remote, directory=sys.argv[1], seconds=float(sys.argv[3]))
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[2])), handler).serve_forever()
