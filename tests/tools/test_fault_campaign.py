from tools.campaign.faults import FAULTS
from tools.fault_campaign import table


def test_the_table_counts_what_struck_and_what_ended_as_undisturbed():
    kill, _, _, term, *_ = (fault.name for fault in FAULTS)
    found = [
        {"fault": kill, "struck": True, "same": True, "bore": "killed", "again": 5},
        {"fault": kill, "struck": True, "same": True, "bore": "killed", "again": 0,
         "differ": ["losses"]},
        {"fault": kill, "struck": True, "same": False, "bore": "killed", "again": 1,
         "differ": ["parameters"]},
        {"fault": term, "struck": False, "same": False, "failed": "Missed: gone", "again": None},
    ]  # fmt: skip
    lines = table(found).splitlines()[2:]
    assert lines == [
        f"| {kill} | 3 | 3 | 2.0, 5 | killed (3) | 2 | 1 |",
        f"| {term} | 1 | 0 | 0.0, 0 | Missed: gone (1) | 0 | 0 |",
    ]
