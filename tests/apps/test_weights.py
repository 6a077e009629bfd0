import pytest
import torch
from kgraft_cli import main as program

from tests.reference.torch_models import CifarResNet


def test_weights_go_in_and_out_of_the_command_line(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        with pytest.raises(SystemExit) as left:
            program.main(list(arguments))
        printed = capsys.readouterr()
        return left.value.code, printed.out, printed.err

    twin = CifarResNet(1, 3, 4)
    torch.save(twin.state_dict(), "twin.pt")
    code, out, _ = run("weights", "import", "twin.pt", "resnet8", "-o", "s.keras", "--size", "8")
    assert (code, out) == (0, "s.keras: resnet8, 75,380 numbers, bit for bit\n")
    code, out, _ = run("weights", "export", "s.keras", "-o", "w.safetensors")
    assert (code, out) == (0, "w.safetensors: 44 keys, the first is conv1.weight\n")
    code, out, err = run("weights", "import", "twin.pt", "resnet20", "-o", "t.keras")
    assert (code, out) == (2, "")
    assert err == (
        "kgraft: twin.pt: no layer1.1.conv1.weight of shape (16, 16, 3, 3), which resnet20 needs.\n"
    )
    code, _, err = run("weights", "import", "twin.pt")
    assert code == 2
    assert "Missing argument 'MODEL'" in err
