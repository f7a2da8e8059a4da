"""PostgreSQL's message for "no connections left" (53300) in languages other than English.

For answers without that SQLSTATE: to a connect, or from a pooler that passes on only the text. From
the message catalogues of PostgreSQL 13, 15, 17 and 18 (src/backend/po), which
tests/unit/test_languages.py has. Imported when a refusal is not known in English.
"""

# ruff: noqa: RUF001 - letters of other alphabets that look like Latin ones
from typing import Final

EXHAUSTED: Final = (
    # German
    "tut mir leid, schon zu viele Verbindungen",
    "die verbleibenden Verbindungen sind für .* reserviert",
    "zu viele Verbindungen (für Datenbank|von Rolle) ",
    # Spanish
    "lo siento, ya tenemos demasiados clientes",
    "las conexiones restantes están reservadas a ",
    "demasiadas conexiones para (la base de datos|el rol) ",
    # French
    "désolé, trop de clients sont déjà connectés",
    "les emplacements de connexions restants sont réservés pour ",
    "trop de connexions pour (la base de données|le rôle) ",
    # Indonesian
    "maaf, terlalu banyak klien yang sudah ada",
    "slot koneksi yang tersisa dipakai untuk ",
    "terlalu banyak koneksi untuk (database|role) ",
    # Italian
    "spiacente, troppi client già connessi",
    "i rimanenti slot di connessione sono riservati a ",
    "troppe connessioni (al database|per il ruolo) ",
    # Japanese
    "現在クライアント数が多すぎます",
    "残りの接続(スロット|枠)は.*予約されています",
    "(データベース|ロール).*(への|からの)接続が多すぎます",
    # Georgian
    "უკაცრავად, უკვე მეტისმეტად ბევრი კლიენტია",
    "დარჩენილი მიერთების სლოტები დაცულია ",
    "ძალიან ბევრი კავშირი ბაზისთვის ",
    "მეტისმეტად ბევრი კავშირი როლისთვის ",
    # Korean
    "최대 동시 접속자 수를 초과했습니다",
    "남은 연결 슬롯은 .* 남겨 놓았음",
    "(데이터베이스 최대|롤의 최대 동시) 접속수를 초과했습니다",
    # Polish
    "przepraszamy, mamy już zbyt wiele klientów",
    "pozostałe gniazda połączeń są zarezerwowane dla ",
    "zbyt wiele połączeń (do bazy|dla roli) ",
    # Portuguese (Brazil)
    "desculpe, muitos clientes conectados",
    "os encaixes de conexão restantes estão reservados para ",
    "muitas conexões para (banco de dados|role) ",
    # Russian
    "извините, уже слишком много клиентов",
    "оставшиеся слоты подключений зарезервированы для ",
    "слишком много подключений (к БД|для роли) ",
    # Swedish
    "ledsen, för många klienter",
    "resterande anslutningsslottar är reserverade för ",
    "för många uppkopplingar (till databasen|för roll) ",
    # Turkish
    "üzgünüm, istemci sayısı çok fazla",
    "kalan bağlantı sayısı, .* için ayrıldı",
    "(veritabanı|rol) bağlantı sayısı aşılmıştır",
    # Ukrainian
    "вибачте, вже забагато клієнтів",
    "слоти підключень, які залишились, зарезервовані для ",
    "слоти підключення, що залишилися, зарезервовані для ",
    "занадто багато підключень (до бази даних|для ролі) ",
    # Chinese, simplified
    "对不起, 已经有太多的客户",
    "客户端连接过多",
    "已保留的连接位置为执行非复制请求的超级用户预留",
    "剩余连接槽位保留给",
    "(到数据库|由角色).*的连接太多了",
    "(数据库|角色) .*的连接过多",
    # Chinese, traditional
    "抱歉，客戶端過多",
    "剩餘的連線槽位保留給",
    "(資料庫|角色) .*的連線太多",
)
"""Each of these messages contains one of the patterns."""
