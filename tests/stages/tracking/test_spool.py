"""The spool of a run, whose last line may be torn."""

from stages.tracking.spool import Spool, read_events, undelivered, writer_alive


def test_the_spool_survives_a_torn_line(tmp_path):
    spool = Spool(tmp_path, "k")
    spool.write("start", kind="train")
    assert writer_alive(spool.folder)
    spool.close()
    with (spool.folder / "events.jsonl").open("a") as file:
        file.write('{"event": "met')
    assert not writer_alive(spool.folder)
    assert [event["event"] for _, event in undelivered(spool.folder)] == ["start"]
    again = Spool(tmp_path, "k")
    again.write("end", status="FINISHED")
    again.close()
    assert [event and event["event"] for _, event in read_events(spool.folder, 0)] == ["start", None, "end"]
