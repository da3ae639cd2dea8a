import csv

import numpy as np
import pandas as pd
import pytest

from space.errors import InputError
from training import predict


def rows_of(file):
    with open(file, newline="") as table:
        return list(csv.DictReader(table))


def test_one_row_for_every_input_in_input_order(small_model, small_phantom, tmp_path, capsys):
    images = sorted(str(path) for path in (small_phantom / "images").iterdir())[:40]
    (tmp_path / "text.png").write_text("no image")
    given = [*images[::-1], str(tmp_path / "text.png"), images[0]]
    predict.main([str(small_model), *given, "--output", str(tmp_path / "out.csv")])
    rows = rows_of(tmp_path / "out.csv")
    assert list(rows[0]) == (
        ["path", "group", "prediction", "probability_normal", "probability_sick", "threshold", "abstained", "error"]
    )
    assert [row["path"] for row in rows] == given
    broken = rows.pop(40)
    assert broken["error"].startswith("it is no image")
    assert (broken["prediction"], broken["probability_sick"], broken["abstained"]) == ("", "", "True")
    for row in rows:
        assert row["prediction"] == ("sick" if float(row["probability_sick"]) >= float(row["threshold"]) else "normal")
        assert (row["abstained"], row["error"]) == ("False", "")
    assert rows[0]["probability_sick"] != rows[-1]["probability_sick"]
    assert "42 images" in capsys.readouterr().out


def test_probabilities_are_those_of_the_evaluation(small_model, small_phantom, tmp_path):
    evaluated = pd.read_csv(small_model / "eval" / "test.csv")
    files = [str(small_phantom / path) for path in evaluated["path"]]
    predict.main([str(small_model), *files, "--output", str(tmp_path / "out.csv")])
    predicted = pd.read_csv(tmp_path / "out.csv")
    assert np.allclose(predicted["probability_sick"], evaluated["probability_sick"], atol=2e-6)
    assert (predicted["prediction"] == evaluated["prediction"]).all()


def test_a_folder_with_a_table_gives_its_rows_and_groups_and_one_without_its_files(small_phantom, tmp_path):
    table = pd.read_csv(small_phantom / "metadata.csv", keep_default_na=False)
    found = predict.find_inputs([str(small_phantom)])
    assert [given.group for given in found] == table["group"].tolist()
    assert [given.path for given in found] == [str(small_phantom / name) for name in table["file_name"]]
    bare = predict.find_inputs([str(small_phantom / "images")])
    assert [given.path for given in bare] == sorted(str(path) for path in (small_phantom / "images").iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["absent.png"], "absent.png: no such file or folder"),
        (["EMPTY"], "found no images"),
        ([], "the following arguments are required: PATH"),
    ],
)
def test_bad_input_is_refused_and_no_file_is_left(small_model, tmp_path, arguments, message):
    (tmp_path / "empty").mkdir()
    arguments = [str(tmp_path / "empty") if argument == "EMPTY" else argument for argument in arguments]
    with pytest.raises(InputError, match=message):
        predict.main([str(small_model), *arguments, "--output", str(tmp_path / "out.csv")])
    assert not (tmp_path / "out.csv").exists()


def test_an_existing_file_is_replaced_only_when_that_is_said(small_model, small_phantom, tmp_path):
    output = tmp_path / "out.csv"
    output.write_text("precious")
    command = [str(small_model), str(next((small_phantom / "images").iterdir())), "--output", str(output)]
    with pytest.raises(InputError, match="out.csv exists"):
        predict.main(command)
    assert output.read_text() == "precious"
    predict.main([*command, "--overwrite"])
    assert len(rows_of(output)) == 1


def test_a_folder_that_cannot_be_written_is_one_line(small_model, small_phantom, tmp_path):
    (tmp_path / "file").write_text("")
    image = str(next((small_phantom / "images").iterdir()))
    with pytest.raises(InputError, match="cannot write"):
        predict.main([str(small_model), image, "--output", str(tmp_path / "file" / "out.csv")])


def test_nothing_readable_at_all_ends_with_an_error_but_keeps_the_reasons(small_model, tmp_path):
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(InputError, match="none of the images could be read"):
        predict.main([str(small_model), str(tmp_path / "text.png"), "--output", str(tmp_path / "out.csv")])
    assert rows_of(tmp_path / "out.csv")[0]["error"]
