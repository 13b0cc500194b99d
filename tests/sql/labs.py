"""A connection to some runs, asked in SQL in which `$name` is the id of a run."""


class Lab:
    """Runs by name; a test file adds what it compares with."""

    def __init__(self, db, ids: dict[str, str]):
        self.db, self.ids = db, ids

    def rows(self, sql: str) -> list[dict]:
        for name, run_id in self.ids.items():
            sql = sql.replace(f"${name}", f"'{run_id}'")
        cursor = self.db.execute(sql)
        names = [column[0] for column in cursor.description]
        return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]
