"""What is trained, beside a `fit` or in one loop: peers, students of teachers, their recipe."""
