"""Every public function with everything that can be wrong with a table."""

from __future__ import annotations

import pytest

from campaign.sampling import chosen
from campaign.tables import DamagedTable, cases, verdict


@pytest.mark.parametrize("case", chosen(case for case in cases().values() if not case.fatal))
def test_a_damaged_table_is_refused_or_does_not_matter(case: DamagedTable, report):
    report(verdict(str(case)))


@pytest.mark.parametrize("case", chosen(case for case in cases().values() if case.fatal))
def test_a_matrix_that_could_end_the_process_is_refused(case: DamagedTable, report, apart):
    report(apart(verdict, str(case)))
