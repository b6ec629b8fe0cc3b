"""The cases of ``python -m tests.stress``, on 60 photos."""

import pytest

from tests.stress import CASES, Case, Folder, make_folder

pytestmark = pytest.mark.full


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("stress") / "photos", 60)


@pytest.mark.parametrize("case", CASES, ids=[case.what for case in CASES])
def test_case(case: Case, folder: Folder):
    case.run(folder)
